"""The score that the numbers of a run are: accuracy, which is shown in percent, or the score of another problem."""

from __future__ import annotations

import math
from typing import NamedTuple

from lifelong.store.records import Run


class Score(NamedTuple):
    """The score in the `accuracy` array of a run.

    Attributes:
        name: its name in tables and figures.
        percent: whether it is between 0 and 1 and shown in percent.
    """

    name: str = "accuracy"
    percent: bool = True

    @classmethod
    def of(cls, run: Run) -> Score:
        """The score that the record of a run names; accuracy if it names none."""
        said = run.about.get("score")
        return cls(str(said["name"]), bool(said["percent"])) if isinstance(said, dict) else cls()

    @property
    def scale(self) -> float:
        """The factor by which values are multiplied when they are shown."""
        return 100.0 if self.percent else 1.0

    @property
    def unit(self) -> str:
        """The unit after the name on an axis."""
        return " (%)" if self.percent else ""

    def named(self, text: str) -> str:
        """`text` with the name of this score instead of accuracy, and spaces instead of underscores."""
        name = self.name
        return text.replace("accuracy", name).replace("Accuracy", name[:1].upper() + name[1:]).replace("_", " ")

    def change(self, value: float, sign: bool = False) -> str:
        """A difference in percentage points, with a second decimal if it is below 0.1; otherwise in three digits."""
        if not self.percent:
            return f"{value + 0.0:{'+' * sign}.3g}"
        digits = 2 if 0 < round(abs(100 * value), 3) < 0.1 else 1
        return f"{round(100 * value, digits) + 0.0:{'+' * sign}.{digits}f}"

    def interval(self, mean: float, half_width: float) -> str:
        """`mean ± half width`, or the mean alone if the half width is NaN."""
        if self.percent:
            digits = 2 if 0 < round(100 * half_width, 2) < 0.1 else 1
        else:
            size = half_width if half_width > 0 else abs(mean)
            digits = max(0, 2 - math.floor(math.log10(size))) if size > 0 else 1
        text = f"{round(self.scale * mean, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.0"
        return text if math.isnan(half_width) else f"{text} ± {self.scale * half_width:.{digits}f}"
