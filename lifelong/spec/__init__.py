"""Specifications as data, without torch: expressions, the catalogue, and runs."""
