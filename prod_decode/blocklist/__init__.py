"""From entries to a compiled blocklist: reading sources, choosing anchors, compiling, saving."""
