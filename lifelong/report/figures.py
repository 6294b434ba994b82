"""What saved runs look like: forgetting curves, over all tasks seen and task by task. The only file with matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.tables import Group, diverged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes and 9 markers share no divisor,
# so neighbours differ in all three and no two of the first 252 strategies look alike.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">")
_BANDS = 6  # more bands than these hide each other
_PANELS = 10
_WIDTH = 7.6  # inches; a page's, so that the letters keep their size in print
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "svg.fonttype": "none",  # text stays text: searchable, and readable by a screen reader
    "svg.hashsalt": "lifelong",
}


@contextmanager
def _style() -> Iterator[None]:
    """The look of a figure whatever the user's matplotlibrc says, which is left as it was."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def curves(group: Group) -> Figure:
    """Average accuracy over the tasks seen so far against tasks learned, a curve per strategy.

    Bands are 95 % t intervals over seeds; with more than 6 strategies every curve has bars at a few points instead.
    Before the first task the average is over all tasks. A curve ends with a cross where a seed diverged.
    """
    names = _names(group, 34)
    with _style():
        figure = _figure(max(3.4, 0.3 + _height(names)))
        axes = figure.subplots()
        for i, run in enumerate(group.runs):
            start = run.accuracy[:, 0].mean(-1, keepdims=True)
            _draw(axes, group, i, np.concatenate([start, metrics.average_curve(run.accuracy)], 1), names[i])
        axes.set(xlabel="tasks learned (0: untrained)", ylabel="average accuracy, tasks seen so far (%)")
        axes.set_title("Average accuracy over the tasks seen so far\n" + textwrap.fill(group.title, 60), loc="left")
        _frame([axes], ticks=10)
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def tasks(group: Group) -> Figure:
    """Accuracy of each task as the stream goes on, a panel per task; a dotted line marks when it was learned.

    Of more than 10 tasks, 10 are shown, evenly spread, the first and the last among them.
    """
    n_tasks = group.runs[0].accuracy.shape[-1]
    shown = np.unique(np.linspace(1, n_tasks, min(n_tasks, _PANELS)).round().astype(int))
    n_columns = len(shown) if len(shown) < 4 else 3 if len(shown) in (5, 6, 9) else 4
    n_rows = -(-len(shown) // n_columns)
    names = _names(group, 48)
    with _style():
        figure = _figure(0.7 + 1.65 * n_rows + _height(names) / 2)
        cells = list(figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel())
        panels = cells[: len(shown)]
        for axes, task in zip(panels, shown, strict=True):
            _panel(axes, group, int(task), names)
        for axes in cells[len(shown) :]:
            axes.set_visible(False)
        for axes in panels[-n_columns:]:  # the last of each column, some above an empty cell
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("tasks learned")
        for axes in panels[::n_columns]:
            axes.set_ylabel("accuracy (%)")
        some = f", {len(shown)} of {n_tasks} tasks" if len(shown) < n_tasks else ""
        title = f"Accuracy of each task{some} (0: untrained; dotted: when it was learned)\n"
        figure.suptitle(title + textwrap.fill(group.title, 100), x=0.01, horizontalalignment="left", fontsize=9)
        _frame(panels, ticks=5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8)
    return figure


def _panel(axes: Axes, group: Group, task: int, names: Sequence[str]) -> None:
    for i, run in enumerate(group.runs):
        _draw(axes, group, i, run.accuracy[:, :, task - 1], names[i], small=True)
    axes.axvline(task, color="#555555", linestyle=":", linewidth=1.2, zorder=1.5)
    axes.set_title(f"task {task}")


def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of an `svg` (the same at every call) or a `png` of 150 dots per inch."""
    content = io.BytesIO()
    metadata = {"Date": None, "Creator": "lifelong"} if kind == "svg" else {"Software": "lifelong"}
    with _style():
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()


def _figure(height: float) -> Figure:
    """A figure of its own, in inches: pyplot and the user's backend are not involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Axes, group: Group, i: int, values: Array, name: str, small: bool = False) -> None:
    """Run `i` of a group: the mean over seeds of `values` [S, 1 + T], as far as every seed was measured."""
    mean, half_width = (100 * found for found in metrics.mean_interval(values))
    x, colour = np.arange(len(mean)), _COLOURS[i % len(_COLOURS)]
    every = max(1, len(x) // (6 if small else 10))
    some = slice(i % every, None, every)  # markers of neighbouring curves at different tasks
    size = {"linewidth": 1.1, "markersize": 3.5} if small else {}
    look: dict[str, Any] = {"color": colour, "linestyle": _DASHES[i % len(_DASHES)], **size}
    axes.plot(x, mean, marker=_MARKERS[i % len(_MARKERS)], markevery=(i % every, every), label=name, **look)
    if len(values) > 1 and len(group.runs) <= _BANDS:
        axes.fill_between(x, mean - half_width, mean + half_width, color=colour, alpha=0.15, linewidth=0)
    elif len(values) > 1 and not small:
        axes.errorbar(x[some], mean[some], half_width[some], fmt="none", ecolor=colour, elinewidth=0.8, capsize=2)
    measured = np.flatnonzero(np.isfinite(mean))
    if diverged(group.runs[i]) and len(measured):
        last = measured[-1]
        axes.plot(x[last], mean[last], "x", color=colour, markersize=6 if small else 9, markeredgewidth=2, zorder=4)


def _names(group: Group, width: int) -> list[str]:
    """What the legend says, in lines of at most `width` letters."""
    fates = [" (×\u00a0diverged)" * diverged(run) for run in group.runs]
    texts = [label + fate for label, fate in zip(group.labels, fates, strict=True)]
    return [textwrap.fill(text, width, break_on_hyphens=False, subsequent_indent="  ") for text in texts]


def _height(names: Sequence[str]) -> float:
    """Inches that a legend of these names takes in one column."""
    return 0.3 + sum(0.05 + 0.135 * (name.count("\n") + 1) for name in names)


def _frame(panels: Sequence[Axes], ticks: int) -> None:
    """Whole numbers of tasks below; at the side what was measured, 10 points at least, from 0 to 100 at most."""
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    low, high = panels[0].get_ylim()
    spare = max(0.0, 10 - (high - low)) / 2
    panels[0].set_ylim(max(low - spare, -3), min(high + spare, 103))  # 3: a marker at 0 or 100 is not cut
