"""Which runs of a large corpus are prohibited, when there is no room for its text: anchors as keyed fingerprints."""
