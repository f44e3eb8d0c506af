"""Runs, read back: a page and plots, and two runs cell by cell."""
