"""What counts as the same code: normalisation, escapes, and the patterns that are looked for in it."""
