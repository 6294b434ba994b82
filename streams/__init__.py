"""The streams and sources: one file per dataset, one function per stream or source."""
