"""A model with its adapter: loading, and merging the one into the other."""
