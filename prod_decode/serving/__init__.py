"""What the doors share: named lists, guards of single rows, and what an engine hides."""
