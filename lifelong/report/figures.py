"""What saved runs look like. The only file with matplotlib.

Figures are laid out by hand, in inches: matplotlib's own layout draws everything twice more, and takes most of the
time.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.costs import COSTS
from lifelong.report.tables import Group, diverged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes and 9 markers share no divisor,
# so neighbours differ in all three and no two of the first 252 strategies look alike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">")
_BANDS = 6  # more bands than these hide each other
_PANELS = 10
SHOWN = 24  # strategies of a figure: more cannot be told apart
_WIDTH = 7.6  # inches; a page's, so that the letters keep their size in print
_SMALL = 7.5  # points, of labels
_LINE = 1.22 * _SMALL / 72  # inches from one line of a label to the next
_LETTER = 0.6 * _SMALL / 72  # inches, a little more than a letter takes
_INK = "#333333"
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # not where matplotlib finds room for it, a tenth of the time
    "axes.unicode_minus": False,  # beyond ASCII a PDF takes a second font
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
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
    "pdf.fonttype": 42,  # what publishers take
}


class Look(NamedTuple):
    """How a strategy is drawn, in every figure."""

    colour: str
    dash: Any
    marker: str


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """A look for every label, in the order met: the same strategy has the same in all groups."""
    labels = dict.fromkeys(label for group in groups for label in group.labels)
    return {label: Look(COLOURS[i % 7], _DASHES[i % 4], _MARKERS[i % 9]) for i, label in enumerate(labels)}


def shown(group: Group) -> list[int]:
    """The runs that are drawn: all, or of more than 24 the bounds and those with the highest average accuracy."""
    runs = range(len(group.runs))
    if len(runs) <= SHOWN:
        return list(runs)
    final = [np.nanmean([*group.values(i)["average_accuracy"], -1.0]) for i in runs]  # -1: of nothing measured, too
    bounds = [i for i in runs if group.bound(i)]
    rest = sorted((i for i in runs if i not in bounds), key=lambda i: -final[i])
    return sorted((bounds + rest)[:SHOWN])


@contextmanager
def _style() -> Iterator[None]:
    """The look of a figure whatever the user's matplotlibrc says, which is left as it was."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def draw(name: str, group: Group, look: Mapping[str, Look]) -> dict[str, bytes]:
    """A figure by name as `svg`, `pdf` and `png`, the same bytes at every call."""
    with _style():
        figure = FIGURES[name](group, look)
        _without_ligatures(figure)
        return {kind: encoded(figure, kind) for kind in ("svg", "pdf", "png")}


def _without_ligatures(figure: Figure) -> None:
    """An fi in one letter takes a second font in a PDF, a fifth of its time."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if hasattr(text, "set_fontfeatures"):  # since matplotlib 3.11
            text.set_fontfeatures(("-liga",))


def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of an `svg`, a `pdf`, or a `png` of 150 dots per inch."""
    content = io.BytesIO()
    metadata = {"svg": {"Date": None, "Creator": "lifelong"}, "png": {"Software": "lifelong"},
                "pdf": {"CreationDate": None, "Creator": "lifelong", "Producer": None}}[kind]
    with _style():
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()


# ---- the figures


def curves(group: Group, look: Mapping[str, Look]) -> Figure:
    """Average accuracy over the tasks seen so far against tasks learned; it ends with a cross where a seed diverged."""
    def values(i: int) -> Array:
        return metrics.average_curve(group.runs[i].accuracy)

    return _over_tasks(group, look, values, 1, "accuracy, mean over tasks so far (%)",
                       "Average accuracy over the tasks seen so far")


def forgetting(group: Group, look: Mapping[str, Look]) -> Figure:
    """Average forgetting of the tasks learned so far against tasks learned."""
    def values(i: int) -> Array:
        return metrics.forgetting_curve(group.runs[i].accuracy)[:, 1:]

    return _over_tasks(group, look, values, 2, "forgetting, mean over tasks so far (points)",
                       "Average forgetting of the tasks learned so far")


def _over_tasks(group: Group, look: Mapping[str, Look], values: Any, first: int, side: str, title: str) -> Figure:
    which = shown(group)
    names = _names(group, which)
    figure, axes = _beside(names, title, group)
    ends = []
    for i in which:
        mean = _curve(axes, group, i, values(i), look[group.labels[i]], first, len(which) <= _BANDS)
        ends.append(_end(mean, first))
    axes.set(xlabel="tasks learned", ylabel=side)
    _frame([axes], 10, "accuracy" in side)
    _labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def _end(mean: Array, first: int) -> tuple[float, float] | None:
    """The last point of a curve that was measured."""
    measured = np.flatnonzero(np.isfinite(mean))
    return (first + float(measured[-1]), float(mean[measured[-1]])) if len(measured) else None


def tasks(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy of each task as the stream goes on, a panel per task; a dotted line marks when it was learned.

    Of more than 10 tasks, 10 are shown, evenly spread, the first and the last among them.
    """
    n_tasks, which = group.n_tasks, shown(group)
    some = np.unique(np.linspace(1, n_tasks, min(n_tasks, _PANELS)).round().astype(int))
    n_columns = len(some) if len(some) < 4 else 3 if len(some) in (5, 6, 9) else 4
    names = _names(group, which, 46)
    figure, panels = _grid(len(some), n_columns, 1.15, 0.22, _height(names) / 2 + 0.15,
                           "Accuracy of each task (0: untrained; dotted: when it was learned)", group)
    for axes, task in zip(panels, some, strict=True):
        for i, name in zip(which, names, strict=True):
            _curve(axes, group, i, group.runs[i].accuracy[:, :, task - 1], look[group.labels[i]], 0,
                   len(which) <= _BANDS, name)
        axes.axvline(task, color="#888888", linestyle=":", linewidth=1.2, zorder=1.5)
        axes.set_title(f"task {task}", pad=3)
    _edges(panels, n_columns, "tasks learned", "accuracy (%)")
    _frame(panels, 5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower left", ncols=2, fontsize=_SMALL,
                  borderaxespad=0.2, labelspacing=0.35)
    return figure


def matrix(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy on every task after every task, mean over seeds, a panel per strategy."""
    del look
    which = shown(group)
    longest = max(len(group.labels[i]) for i in which)
    n_columns = min(len(which), 5 if longest <= 18 else 4 if longest < 50 else 3)
    names = _names(group, which, round((_WIDTH - 0.55) / max(n_columns, 2) / _LETTER) - 3)
    lines = max(name.count("\n") + 1 for name in names)
    side = (_WIDTH - 0.55 - 0.7) / max(n_columns, 2) - 0.15
    figure, panels = _grid(len(which), max(n_columns, 2), side, 0.1 + _LINE * lines, 0.0, "Accuracy matrix (%)", group)
    for axes, i, name in zip(panels, which, names, strict=True):
        mean = 100 * group.runs[i].accuracy.mean(0)
        edges = (0.5, group.n_tasks + 0.5, group.n_tasks + 0.5, -0.5)
        image = axes.imshow(mean, cmap="cividis", vmin=0, vmax=100, aspect="auto", extent=edges,
                            interpolation="nearest")
        axes.set_title(name, pad=3, fontsize=_SMALL)
        axes.grid(visible=False)
        axes.set_facecolor("#bbbbbb")
        if group.n_tasks <= 5 and len(which) <= 8:
            _numbers(axes, mean)
    _whole_ticks(panels, 5)
    for p, axes in enumerate(panels):
        if p % max(n_columns, 2):
            axes.set_yticks([])  # a tick that is not seen takes its time
        if p + max(n_columns, 2) < len(panels):
            axes.set_xticks([])
    _edges(panels, max(n_columns, 2), "tested on task", "after task (0: untrained)")
    last = panels[min(len(panels), max(n_columns, 2)) - 1].get_position()
    bar = figure.add_axes((last.x1 + 0.12 / _WIDTH, last.y0, 0.11 / _WIDTH, last.height))
    figure.colorbar(image, cax=bar)
    bar.grid(visible=False)
    return figure


def _numbers(axes: Axes, mean: Array) -> None:
    for (row, column), value in np.ndenumerate(mean):
        if np.isfinite(value):
            axes.text(column + 1, row, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                      color="#ffffff" if value < 55 else "#111111")


def transfer(group: Group, look: Mapping[str, Look]) -> Figure:
    """Backward and, where it is defined, forward transfer: means with intervals, and every seed as a dot."""
    which = shown(group)
    found = [name for name in ("backward_transfer", "forward_transfer")
             if any(name in group.values(i) and np.isfinite(group.values(i)[name]).any() for i in which)]
    names = _names(group, which)
    left, top = 0.25 + _wide(names), 0.62
    tall = 0.1 + len(names) * max(0.2, 0.06 + _LINE * max(name.count("\n") + 1 for name in names))
    figure = _figure(top + tall + 0.45)
    _title(figure, "Transfer between tasks", group)
    width = (_WIDTH - left - 0.1) / len(found) - 0.2
    for column, name in enumerate(found):
        axes = _axes(figure, left + column * (width + 0.2), 0.45, width, tall)
        for row, i in enumerate(which):
            _spot(axes, 100 * group.values(i)[name], row, look[group.labels[i]])
        axes.axvline(0, color="#888888", linewidth=1, zorder=1.5)
        axes.set_yticks(range(len(which)), names if column == 0 else [""] * len(which), fontsize=_SMALL)
        axes.set(ylim=(len(which) - 0.5, -0.5), xlabel="accuracy points")
        axes.set_title(name.replace("_", " "), pad=4)
        axes.tick_params(axis="y", length=0)
    return figure


def _spot(axes: Axes, values: Array, row: int, look: Look) -> None:
    """Seeds as faint dots, their mean and its interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    mean, half = metrics.mean_interval(values)
    axes.plot(values, np.full(len(values), row + 0.25), ".", color=look.colour, alpha=0.4, markersize=4,
              markeredgewidth=0)
    bar = None if np.isnan(half) else half
    axes.errorbar(float(mean), row, xerr=bar, fmt=look.marker, color=look.colour, elinewidth=1.2, capsize=2.5,
                  markersize=5)


def plane(group: Group, look: Mapping[str, Look]) -> Figure:
    """Final accuracy against forgetting: the best are above, on the left."""
    which = shown(group)
    names = _names(group, which)
    figure, axes = _beside(names, "Final accuracy against forgetting", group)
    ends = [_point(axes, group.values(i)["forgetting"], group.values(i)["average_accuracy"], look[group.labels[i]])
            for i in which]
    axes.set(xlabel="forgetting (points)", ylabel="average accuracy after the last task (%)")
    axes.margins(0.06)
    _labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def _point(axes: Axes, x: Array, y: Array, look: Look) -> tuple[float, float] | None:
    """A mean in the plane with the intervals of both, where it is one."""
    kept = np.isfinite(x) & np.isfinite(y)
    if not kept.any():
        return None
    (across, wide), (up, high) = (metrics.mean_interval(100 * v[kept]) for v in (x, y))
    if not np.isnan(high):
        axes.errorbar(across, up, yerr=high, xerr=None if np.ptp(x[kept]) == 0 else wide, fmt="none",
                      ecolor=look.colour, elinewidth=0.9, alpha=0.7)
    axes.plot(across, up, look.marker, color=look.colour, markersize=6)
    return float(across), float(up)


def within(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy inside tasks: on the first task, and on average over all tasks before the one being learned."""
    which = [i for i in shown(group) if "curve" in group.runs[i].logs]
    names = _names(group, which)
    tall = max(1.6, _height(names))
    left, right = 0.6, _wide(names) + 0.35
    figure = _figure(2 * tall + 1.5)
    _title(figure, "Accuracy inside tasks", group)
    upper, lower = (_axes(figure, left, bottom, _WIDTH - left - right, tall) for bottom in (0.85 + tall, 0.45))
    for axes, first, title in ((upper, True, "task 1"), (lower, False, "mean over the tasks before the present one")):
        ends = []
        for i in which:
            at, values = inside(group, i, first)
            mean, half = (100 * v for v in metrics.mean_interval(values))
            style = look[group.labels[i]]
            axes.plot(at, mean, color=style.colour, linestyle=style.dash, linewidth=1.1)
            if len(values) > 1 and len(which) <= _BANDS:
                axes.fill_between(at, mean - half, mean + half, color=style.colour, alpha=0.15, linewidth=0)
            good = np.flatnonzero(np.isfinite(mean))
            ends.append((float(at[good[-1]]), float(mean[good[-1]])) if len(good) else None)
        axes.set_xlim(0, group.n_tasks * 1.01)
        axes.set(ylabel="accuracy (%)", xlabel="tasks learned" if not first else "")
        axes.set_title(title, pad=3, loc="left")
        _frame([axes], 10)
        _labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def inside(group: Group, i: int, first: bool) -> tuple[Array, Array]:
    """When run `i` was measured, in tasks [P], and its accuracy then [S, P]: on task 1, or on the tasks before.

    A step of a task of K steps counts 1 / K; where the record does not say K, the next measurement after the last
    inside the task is taken for its end.
    """
    run = group.runs[i]
    step, every = run.logs["curve_step"], run.spec.get("eval_every") or 1
    points: list[tuple[float, int, Array]] = []
    for t in range(group.n_tasks):
        own = np.flatnonzero(step[:, 0] == t)
        length = float(np.max(run.logs["steps"][:, t])) if "steps" in run.logs else float(
            step[own, 1].max() + every if len(own) else 1)
        points += [(t + step[e, 1] / length, t, run.logs["curve"][:, e]) for e in own]
        points.append((t + 1.0, t, run.accuracy[:, t + 1]))
    kept = [(at, a[:, 0] if first else a[:, :t].mean(-1)) for at, t, a in points if first or t > 0]
    if not kept:
        return np.zeros(0), np.zeros((len(run.accuracy), 0))
    return np.array([at for at, _ in kept]), np.stack([a for _, a in kept], 1)


def cost(group: Group, look: Mapping[str, Look]) -> Figure:
    """Final accuracy against what it cost: a panel per kind of cost that the records have."""
    which = shown(group)
    names = _names(group, which)
    kinds = [kind for kind in COSTS if any(kind.of(group.runs[i]) is not None for i in which)]
    left, right, top = 0.6, _wide(names) + 0.35, 0.62
    tall = max(2.3, _height(names))
    figure = _figure(top + tall + 0.5)
    _title(figure, "Final accuracy against cost", group)
    width = (_WIDTH - left - right) / len(kinds)
    colours = [look[group.labels[i]].colour for i in which]
    for column, kind in enumerate(kinds):
        axes = _axes(figure, left + column * width, 0.5, width - 0.12, tall)
        ends = []
        for i in which:
            x, values = kind.of(group.runs[i]), group.values(i)["average_accuracy"]
            style = look[group.labels[i]]
            ends.append(None if x is None else _point(axes, np.full(len(values), x / 100), values, style))
        found = [x for i in which if (x := kind.of(group.runs[i])) is not None]
        if min(found) > 0 and max(found) / min(found) > 20:
            axes.set_xscale("log")
        elif max(found) == min(found):
            axes.set_xlim(0, 2 * found[0] or 1)
        axes.margins(0.1)
        axes.set_xlabel(kind.title)
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("average accuracy after the last task (%)")
        _few_ticks(axes)
        if kind is kinds[-1]:
            have = [end or _unplaced(axes, group.values(i)["average_accuracy"])
                    for end, i in zip(ends, which, strict=True)]
            _labels(axes, have, names, colours)
    return figure


def _unplaced(axes: Axes, values: Array) -> tuple[float, float] | None:
    """Where the label of a run stands that this panel does not show: beside its accuracy."""
    finite = values[np.isfinite(values)]
    return (axes.get_xlim()[1], float(100 * finite.mean())) if len(finite) else None


FIGURES = {"curves": curves, "forgetting": forgetting, "tasks": tasks, "matrix": matrix, "transfer": transfer,
           "within": within, "plane": plane, "cost": cost}


def drawable(group: Group) -> list[str]:
    """The names of the figures that a group has something to show in."""
    several = group.n_tasks > 1
    measured = any(np.isfinite(group.values(i)["average_accuracy"]).any() for i in shown(group))
    needs = {"forgetting": several, "transfer": several and measured, "plane": several and measured,
             "within": any("curve" in group.runs[i].logs for i in shown(group)), "cost": measured and any(
                 kind.of(run) is not None for run in group.runs for kind in COSTS)}
    return [name for name in FIGURES if needs.get(name, True)]


# ---- what they share


def _curve(axes: Axes, group: Group, i: int, values: Array, look: Look, first: int, band: bool,
           name: str = "") -> Array:
    """Run `i`: mean over seeds of `values` [S, P] against tasks from `first` on, as far as every seed was measured."""
    small = bool(name)
    mean, half_width = (100 * found for found in metrics.mean_interval(values))
    x = first + np.arange(len(mean))
    every = max(1, len(x) // (6 if small else 10))
    some = slice(i % every, None, every)  # markers of neighbouring curves at different tasks
    size: dict[str, Any] = {"linewidth": 1.1, "markersize": 3.0} if small else {}
    axes.plot(x, mean, marker=look.marker, markevery=(i % every, every), label=name or group.labels[i],
              color=look.colour, linestyle=look.dash, **size)
    if len(values) > 1 and band:
        axes.fill_between(x, mean - half_width, mean + half_width, color=look.colour, alpha=0.15, linewidth=0)
    elif len(values) > 1 and not small:
        axes.errorbar(x[some], mean[some], half_width[some], fmt="none", ecolor=look.colour, elinewidth=0.8, capsize=2)
    measured = np.flatnonzero(np.isfinite(mean))
    if diverged(group.runs[i]) and len(measured):
        last = measured[-1]
        axes.plot(x[last], mean[last], "x", color=look.colour, markersize=6 if small else 9, markeredgewidth=2,
                  zorder=4)
    return mean


def _figure(height: float) -> Figure:
    """A figure of its own, in inches: pyplot and the user's backend are not involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def _title(figure: Figure, title: str, group: Group) -> None:
    text = title + "\n" + textwrap.shorten(group.title, 115, placeholder=" ...")
    figure.text(0.08 / _WIDTH, 1 - 0.06 / figure.get_figheight(), text.replace("$", r"\$"), va="top", fontsize=8.5,
                linespacing=1.3)


def _beside(names: Sequence[str], title: str, group: Group) -> tuple[Figure, Axes]:
    """One panel with room for labels at its right."""
    tall = max(2.9, _height(names))
    figure = _figure(tall + 1.0)
    _title(figure, title, group)
    return figure, _axes(figure, 0.6, 0.5, _WIDTH - 0.6 - _wide(names) - 0.35, tall)


def _grid(n: int, n_columns: int, tall: float, above: float, below: float, title: str,
          group: Group) -> tuple[Figure, list[Axes]]:
    """`n` panels of one height with `above` inches over each row, and `below` of room under the last."""
    n_rows, left, right = -(-n // n_columns), 0.55, 0.7 if "matrix" in title else 0.1
    across, gap = (_WIDTH - left - right) / n_columns, 0.15
    head, foot = 0.42, below + 0.42
    row, ragged = tall + above + 0.1, 0.35 if n_rows > 1 and n % n_columns else 0.0  # room for numbers above a gap
    figure = _figure(head + n_rows * row + ragged + foot)
    _title(figure, title, group)
    bottoms = [foot + (n_rows - 1 - r) * row + (ragged if r < n_rows - 1 else 0.0) for r in range(n_rows)]
    panels = [_axes(figure, left + (p % n_columns) * across, bottoms[p // n_columns], across - gap, tall)
              for p in range(n)]
    return figure, panels


def _edges(panels: Sequence[Axes], n_columns: int, below: str, beside: str) -> None:
    """Numbers and titles of axes at the edges of a grid alone."""
    for p, axes in enumerate(panels):
        last = p + n_columns >= len(panels)
        axes.tick_params(labelbottom=last, labelleft=p % n_columns == 0, bottom=last, left=p % n_columns == 0)
        if last:
            axes.set_xlabel(below)
        if p % n_columns == 0:
            axes.set_ylabel(beside)


def _names(group: Group, which: Sequence[int], width: int = 30) -> list[str]:
    """What labels say, in lines of at most `width` letters."""
    texts = [group.labels[i] + " (×\u00a0diverged)" * diverged(group.runs[i]) for i in which]
    texts = [" " + text if text.startswith("_") else text for text in texts]  # a legend leaves _x out
    return ["\n".join(textwrap.wrap(re.sub(r"\s+", " ", text).replace("$", r"\$"), width, break_on_hyphens=False,
                                    subsequent_indent="  ", max_lines=4, placeholder=" ...")) for text in texts]


def _height(names: Sequence[str]) -> float:
    """Inches that these names take one under the other."""
    return 0.1 + sum(0.05 + _LINE * (name.count("\n") + 1) for name in names)


def _wide(names: Sequence[str]) -> float:
    """Inches that the longest line takes."""
    return _LETTER * max(len(line) for name in names for line in name.split("\n"))


def _labels(axes: Axes, ends: Sequence[tuple[float, float] | None], names: Sequence[str],
            colours: Sequence[str]) -> None:
    """Each name at the right of its point, moved up or down where names would overlap, and a thin line to it."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # matplotlib puts both off until it draws
    tall = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {k: to_axes.transform(end) for k, end in enumerate(ends) if end is not None}
    order = sorted(at, key=lambda k: float(at[k][1]))
    heights = [(0.05 + _LINE * (names[k].count("\n") + 1)) / tall for k in order]
    width = axes.get_position().width * axes.figure.get_figwidth()  # type: ignore[union-attr]
    for k, y in zip(order, _spread([float(at[k][1]) for k in order], heights), strict=True):
        axes.plot([at[k][0], 1 + 0.1 / width, 1 + 0.22 / width], [at[k][1], y, y], color=colours[k], linewidth=0.6,
                  alpha=0.6, transform=axes.transAxes, clip_on=False, zorder=1)
        axes.text(1 + 0.26 / width, y, names[k], color=colours[k], fontsize=_SMALL, va="center", linespacing=1.05,
                  transform=axes.transAxes)


def _spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Places nearest to those wanted, in order, at which labels of these heights do not overlap, within 0 to 1.

    Least squares under order: what is left of each place after the labels below it must not decrease (pool adjacent
    violators).
    """
    if not wanted:
        return []
    h = np.array(heights)
    below = np.concatenate([[0.0], np.cumsum((h[1:] + h[:-1]) / 2)])
    pools: list[list[float]] = []
    for z in np.array(wanted) - below:
        pools.append([float(z), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            z2, n2 = pools.pop()
            z1, n1 = pools.pop()
            pools.append([(z1 * n1 + z2 * n2) / (n1 + n2), n1 + n2])
    free = np.concatenate([np.full(int(n), z) for z, n in pools])
    low, high = h[0] / 2, 1 - h[-1] / 2 - below[-1]
    placed: list[float] = (np.clip(free, min(low, high), max(low, high)) + below).tolist()
    return placed


def _frame(panels: Sequence[Axes], ticks: int, accuracy: bool = True) -> None:
    """Whole numbers of tasks below; at the side what was measured, 10 points at least, all panels alike."""
    _whole_ticks(panels, ticks, y=False)
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(a for a, _ in limits), max(b for _, b in limits)
    spare = max(0.0, 10 - (high - low)) / 2
    floor = -3.0 if accuracy else -103.0  # 3: a marker at 0 or 100 is not cut
    for axes in panels:
        axes.set_ylim(max(low - spare, floor), min(high + spare, 103))


def _whole_ticks(panels: Sequence[Axes], ticks: int, y: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
        if y:
            axes.yaxis.set_major_locator(MaxNLocator(ticks, integer=True))


def _few_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    log = axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(LogLocator(numticks=4) if log else MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
