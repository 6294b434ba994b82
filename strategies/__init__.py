"""The strategies: one file per family, one function per method."""
