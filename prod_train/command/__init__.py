"""What only sub-commands need that do not train: their options, what they print, and a page."""
