"""What was asked for, as data: expressions, the catalogue, a run; no torch."""
