"""Tests, in the folders of what they test; run from the checkout."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
