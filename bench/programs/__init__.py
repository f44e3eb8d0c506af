"""What Python code says: its syntax tree, what its names and strings stand for, whether what it calls exists."""
