"""Rows of code: made from source files, read, compared with each other, and written anew by the model itself."""
