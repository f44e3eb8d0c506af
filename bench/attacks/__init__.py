"""Ways to get out again what a model was made to forget."""
