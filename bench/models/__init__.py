"""Models under test: taught, made to forget, and what they write and still know."""
