"""Other libraries that constrain what a model writes, driven as their users drive them."""
