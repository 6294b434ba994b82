"""The version of lifelong."""

__version__ = "0.1.0"
