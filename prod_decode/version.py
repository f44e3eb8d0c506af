"""The version, which files that this package writes carry."""

__version__ = "0.2.0"
