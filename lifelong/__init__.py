"""lifelong: continual learning benchmarks, forgetting curves, and strategies of one's own."""

__version__ = "0.1.0"
