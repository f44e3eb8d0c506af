"""The three tasks: verbatim copying, insecure calls, deprecated interfaces."""
