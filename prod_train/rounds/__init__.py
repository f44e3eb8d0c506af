"""A run by a recipe: what it chooses by model and data, which other code it keeps, and its rounds.

`run` and `check` are what the commands of these names call, with a recipe and without.
"""
