"""Rows of code: read, compared with each other, and written anew by the model itself."""
