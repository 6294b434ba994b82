"""Many small panels on a single pair of axes, because matplotlib spends most of its time on axes and ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lifelong.metrics import Array
from lifelong.report import canvas
from lifelong.report.group import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEFT, _GAP, _HEAD, _FOOT = 0.55, 0.15, 0.42, 0.42  # inches


class Mosaic:
    """Panels of equal size in rows, on axes that cover the whole figure and are in inches.

    Attributes:
        figure: the figure.
        axes: the axes of all panels; `place` converts the coordinates of a panel.
        corners: [P, 2], the lower left corner of each panel.
        width, height: size of a panel.
    """

    def __init__(self, n: int, n_columns: int, height: float, above: float, below: float, title: str, group: Group,
                 right: float = 0.1) -> None:
        n_rows, across = -(-n // n_columns), (canvas.WIDTH - _LEFT - right) / n_columns
        row = height + above + 0.1
        ragged = 0.35 if n_rows > 1 and n % n_columns else 0.0  # room for numbers above a gap
        tall = _HEAD + n_rows * row + ragged + _FOOT + below
        self.figure: Figure = canvas.blank(tall)
        canvas.headline(self.figure, title, group)
        self.axes: Axes = canvas.panel(self.figure, 0, 0, canvas.WIDTH, tall)
        self.axes.set(xlim=(0, canvas.WIDTH), ylim=(0, tall))
        self.axes.set_axis_off()
        at_row, at_column = np.divmod(np.arange(n), n_columns)
        bottom = _FOOT + below + (n_rows - 1 - at_row) * row + np.where(at_row < n_rows - 1, ragged, 0)
        self.corners: Array = np.stack([_LEFT + at_column * across, bottom], 1)
        self.width, self.height, self.n_columns = across - _GAP, height, n_columns
        self.limits = (0.0, 1.0), (0.0, 1.0)

    def place(self, p: int, x: Array | float, y: Array | float) -> tuple[Array, Array]:
        """The coordinates in inches of points in panel `p`; points above or below the panel are moved to its edge."""
        (left, right), (bottom, top) = self.limits
        y = np.clip(y, min(bottom, top), max(bottom, top))
        return (self.corners[p, 0] + (np.asarray(x) - left) / (right - left) * self.width,
                self.corners[p, 1] + (np.asarray(y) - bottom) / (top - bottom) * self.height)

    def strung(self, xs: Sequence[Array], ys: Sequence[Array]) -> tuple[Array, Array]:
        """The lines of all panels as one line with gaps."""
        placed = [self.place(p, x, y) for p, (x, y) in enumerate(zip(xs, ys, strict=True))]
        x, y = (np.concatenate([np.append(one[side], np.nan) for one in placed]) for side in (0, 1))
        return x, y

    def frame(self, titles: Sequence[str], below: str, beside: str, grid: bool) -> None:
        """Draws titles and edges of all panels, and tick labels at the outer panels of each row and column."""
        from matplotlib.collections import LineCollection

        (begin, end), (low, high) = self.limits
        x, y = _round_numbers(begin, end, True), _round_numbers(low, high, not grid or high - low > 5)
        edges, lines = [], []
        for p in range(len(self.corners)):
            left, bottom = self.corners[p]
            edges.append([(left, bottom + self.height), (left, bottom), (left + self.width, bottom)])
            across, up = self.place(p, x, self.limits[1][0])[0], self.place(p, self.limits[0][0], y)[1]
            lines += [[(v, bottom), (v, bottom + self.height)] for v in across]
            lines += [[(left, v), (left + self.width, v)] for v in up]
            self.axes.text(left + self.width / 2, bottom + self.height + 0.05, titles[p], ha="center", va="bottom",
                           fontsize=canvas.SMALL, linespacing=1.05)
            if p % self.n_columns == 0:
                self._numbers(left - 0.05, up, y, ha="right", va="center")
                self.axes.text(left - 0.4, bottom + self.height / 2, beside, rotation=90, ha="center", va="center")
            if p + self.n_columns >= len(self.corners):
                self._numbers(across, bottom - 0.05, x, ha="center", va="top")
                self.axes.text(left + self.width / 2, bottom - 0.22, below, ha="center", va="top")
        if grid:
            self.axes.add_collection(LineCollection(lines, colors="#e4e4e4", linewidths=0.8, zorder=0.5))
        self.axes.add_collection(LineCollection(edges, colors=canvas.INK, linewidths=0.8, zorder=2.5))

    def _numbers(self, x: Array | float, y: Array | float, values: Array, **place: str) -> None:
        for at, up, value in zip(*np.broadcast_arrays(x, y), values, strict=True):
            self.axes.text(at, up, f"{value:g}", fontsize=canvas.SMALL, color=canvas.INK, **place)  # type: ignore[arg-type]


def _round_numbers(low: float, high: float, whole: bool) -> Array:
    """A few round numbers between two limits, integers if `whole`."""
    from matplotlib.ticker import MaxNLocator

    found = np.array(MaxNLocator(5, integer=whole).tick_values(min(low, high), max(low, high)), dtype=np.float64)
    return found[(found >= min(low, high)) & (found <= max(low, high))]
