"""The streams: one file per source, one function per stream."""
