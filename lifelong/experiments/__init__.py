"""From what was asked for to runs: preparing, training, tuning, checking."""
