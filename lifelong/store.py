"""Where runs are kept: a folder per run, named by its spec; the folders are the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Run:
    """What was asked for and what was measured.

    Attributes:
        spec: JSON values, enough to do the run again.
        accuracy: [S, 1 + T, T]; row 0 is the untrained learner, row t the learner after task t; NaN = not measured.
        about: how it went: status, device, versions, seconds.
        logs: further arrays, for example `accuracy_task` of the same shape.
    """

    spec: Mapping[str, Any]
    accuracy: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, np.ndarray] = field(default_factory=dict)
