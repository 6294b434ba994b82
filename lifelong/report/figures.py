"""The figures of a report: one function per figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report import canvas
from lifelong.report.canvas import Look
from lifelong.report.costs import COSTS, Cost
from lifelong.report.group import Group
from lifelong.report.mosaic import Mosaic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = 10
SHOWN = 24  # strategies in a figure, because more could not be distinguished


def shown(group: Group) -> list[int]:
    """The indices of the runs in figures: all up to 24, otherwise the bounds and those with the highest accuracy."""
    runs = range(len(group.runs))
    if len(runs) <= SHOWN:
        return list(runs)
    final = [values[np.isfinite(values)].mean() if np.isfinite(values).any() else -np.inf
             for values in (group.values(i)["average_accuracy"] for i in runs)]
    bounds = [i for i in runs if group.bound(i)]
    rest = sorted((i for i in runs if i not in bounds), key=lambda i: -final[i])
    return sorted((bounds + rest)[:SHOWN])


def draw(name: str, group: Group, look: Mapping[str, Look]) -> dict[str, bytes]:
    """A figure by name as `svg`, `pdf` and `png`; the bytes are the same at every call."""
    with canvas.styled():
        figure = FIGURES[name](group, look)
        found = {"svg": canvas.encoded(figure, "svg")}  # before `lighten`: an SVG only names its font
        canvas.lighten(figure)
        return found | {kind: canvas.encoded(figure, kind) for kind in ("pdf", "png")}


# ---- the figures


def curves(group: Group, look: Mapping[str, Look]) -> Figure:
    """Average accuracy over the tasks seen so far after each task; a cross marks where a seed diverged."""
    def values(i: int) -> Array:
        return metrics.average_curve(group.runs[i].accuracy)

    return _over_tasks(group, look, values, 1, group.score.named("accuracy, mean over tasks so far") + group.score.unit,
                       group.score.named("Average accuracy over the tasks seen so far"))


def forgetting(group: Group, look: Mapping[str, Look]) -> Figure:
    """Average forgetting of the tasks learned so far after each task."""
    def values(i: int) -> Array:
        return metrics.forgetting_curve(group.runs[i].accuracy)[:, 1:]

    return _over_tasks(group, look, values, 2, "forgetting, mean over tasks so far" + _points_of(group),
                       "Average forgetting of the tasks learned so far")


def _over_tasks(group: Group, look: Mapping[str, Look], values: Any, first: int, side: str, title: str) -> Figure:
    which = shown(group)
    names = canvas.names(group, which)
    figure, axes = canvas.beside(names, title, group)
    ends = []
    for i in which:
        mean = canvas.curve(axes, group, i, values(i), look[group.labels[i]], first, len(which) <= canvas.BANDS)
        ends.append(_end(mean, first))
    axes.set(xlabel="tasks learned", ylabel=side)
    canvas.frame_ticks(axes, group.score.percent, first == 1)
    canvas.labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def _points_of(group: Group) -> str:
    return " (points)" if group.score.percent else ""


def _end(mean: Array, first: int) -> tuple[float, float] | None:
    """The last measured point of a curve."""
    measured = np.flatnonzero(np.isfinite(mean))
    return (first + float(measured[-1]), float(mean[measured[-1]])) if len(measured) else None


def tasks(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy on each task after every task, one panel per task; a dotted line marks when the task was learned.

    Of more than 10 tasks, 10 are shown, evenly spaced and including the first and the last.
    """
    n_tasks, which = group.n_tasks, shown(group)
    some = np.unique(np.linspace(1, n_tasks, min(n_tasks, _PANELS)).round().astype(int))
    n_columns = len(some) if len(some) < 4 else 3 if len(some) in (5, 6, 9) else 4
    names = canvas.names(group, which, 46)
    half = -(-len(names) // 2)  # of them stand in the first of the legend's two columns
    tall = max(canvas.height(column) for column in (names[:half], names[half:]))
    mosaic = Mosaic(len(some), n_columns, 1.15, 0.22, tall + 0.15,
                    group.score.named("Accuracy on each task (0: untrained; dotted: when it was learned)"), group)
    found = [metrics.mean_interval(group.score.scale * group.runs[i].accuracy[:, :, some - 1]) for i in which]
    measured = [a[np.isfinite(a)] for a, _ in found]
    low, high = (edge([edge(a) for a in measured if len(a)], default=50) for edge in (min, max))
    spare = 5 if group.score.percent else 0.05 * (high - low) or 1.0
    low, high = (max(low - 5, -3), min(high + 5, 103)) if group.score.percent else (low - spare, high + spare)
    mosaic.limits = (-0.03 * n_tasks, 1.03 * n_tasks), (low, high)
    for k, (i, (mean, around)) in enumerate(zip(which, found, strict=True)):
        style, there = look[group.labels[i]], [np.flatnonzero(np.isfinite(column)) for column in mean.T]
        t = [rows.astype(float) for rows in there]
        x, y = mosaic.strung(t, _at(mean, there))
        marked = _marked([len(rows) for rows in there], k)
        mosaic.axes.plot(x, y, color=style.colour, linestyle=style.dash, marker=style.marker, markevery=marked,
                         linewidth=1.1, markersize=3, label=names[k])
        if len(which) <= canvas.BANDS and len(group.runs[i].accuracy) > 1:
            upper, lower = (mosaic.strung(t, _at(mean + sign * around, there))[1] for sign in (1, -1))
            mosaic.axes.fill_between(x, lower, upper, color=style.colour, alpha=0.15, linewidth=0)
    for p, task in enumerate(some):
        mosaic.axes.plot(*mosaic.place(p, np.full(2, task), np.array(mosaic.limits[1])), color="#888888",
                         linestyle=":", linewidth=1.2, zorder=1.5)
    mosaic.frame([f"task {task}" for task in some], "tasks learned", group.score.name + group.score.unit, grid=True)
    mosaic.figure.legend(mosaic.axes.lines[:len(which)], names, loc="lower left", ncols=2, fontsize=canvas.SMALL,
                         borderaxespad=0.2, labelspacing=0.35)
    return mosaic.figure


def _at(values: Array, rows: Sequence[NDArray[np.intp]]) -> list[Array]:
    """For each column of `values` the given rows."""
    return [column[wanted] for column, wanted in zip(values.T, rows, strict=True)]


def _marked(counts: Sequence[int], k: int) -> list[int]:
    """The points with markers on a line with a gap after every panel: about six of `counts` points, from the k-th."""
    found, first = [], 0
    for count in counts:
        every = max(1, (count - 1) // 6)
        found += [first + at for at in range(k % every, count, every)]
        first += count + 1
    return found


def matrix(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy on every task after every task, mean over seeds, one panel per strategy."""
    del look
    which, n_tasks = shown(group), group.n_tasks
    longest = max(len(group.labels[i]) for i in which)
    n_columns = max(2, min(len(which), 5 if longest <= 18 else 4 if longest < 50 else 3))
    names = canvas.names(group, which, round((canvas.WIDTH - 1.25) / n_columns / canvas.LETTER) - 1)
    lines = max(name.count("\n") + 1 for name in names)
    side = (canvas.WIDTH - 1.25) / n_columns - 0.15
    mosaic = Mosaic(len(which), n_columns, side, 0.1 + canvas.LINE * lines, 0.0,
                    group.score.named("Accuracy matrix") + group.score.unit, group, 0.7)
    mosaic.limits = (0.5, n_tasks + 0.5), (n_tasks + 0.5, -0.5)
    low, high = _range(group, which)
    for p, i in enumerate(which):
        mean = group.score.scale * group.runs[i].accuracy.mean(0)
        left, bottom = mosaic.corners[p]
        image = mosaic.axes.imshow(np.ma.masked_invalid(mean), cmap=_colours(), vmin=low, vmax=high, aspect="auto",
                                   extent=(left, left + side, bottom, bottom + side), interpolation="nearest")
        if n_tasks <= 5 and len(which) <= 8:
            _numbers(mosaic, p, mean, ".0f" if group.score.percent else ".2g", low + 0.55 * (high - low))
    mosaic.axes.set(xlim=(0, canvas.WIDTH), ylim=(0, mosaic.figure.get_figheight()))
    mosaic.frame(names, "tested on task", "after task (0: untrained)", grid=False)
    left, bottom = mosaic.corners[min(len(which), n_columns) - 1]
    bar = canvas.panel(mosaic.figure, left + side + 0.12, bottom, 0.11, side)
    mosaic.figure.colorbar(image, cax=bar)
    bar.grid(visible=False)
    return mosaic.figure


def _colours() -> Any:
    """The colour map cividis, which suits colour-blind readers, with grey for values that were not measured."""
    from matplotlib import colormaps

    return colormaps["cividis"].with_extremes(bad="#bbbbbb")


def _range(group: Group, which: Sequence[int]) -> tuple[float, float]:
    """The smallest and largest value of the colour scale."""
    if group.score.percent:
        return 0, 100
    found = np.concatenate([group.runs[i].accuracy.mean(0).ravel() for i in which])
    return float(np.nanmin(found)), float(np.nanmax(found))


def _numbers(mosaic: Mosaic, p: int, mean: Array, digits: str, middle: float) -> None:
    for (row, column), value in np.ndenumerate(mean):
        if np.isfinite(value):
            x, y = mosaic.place(p, column + 1, row)
            mosaic.axes.text(float(x), float(y), f"{value:{digits}}", ha="center", va="center", fontsize=6.5,
                             color="#fefefe" if value < middle else "#111111")


def transfer(group: Group, look: Mapping[str, Look]) -> Figure:
    """Backward transfer and, if it is defined, forward transfer: means with intervals, and a dot for every seed."""
    which = shown(group)
    found = [name for name in ("backward_transfer", "forward_transfer")
             if any(name in group.values(i) and np.isfinite(group.values(i)[name]).any() for i in which)]
    names = canvas.names(group, which)
    left, top = 0.25 + canvas.wide(names), 0.62
    tall = 0.1 + len(names) * max(0.2, 0.06 + canvas.LINE * max(name.count("\n") + 1 for name in names))
    figure = canvas.blank(top + tall + 0.45)
    title = "Backward and forward transfer" if len(found) > 1 else found[0].replace("_", " ").capitalize()
    canvas.headline(figure, title, group)
    width = (canvas.WIDTH - left - 0.1) / len(found) - 0.2
    for column, name in enumerate(found):
        axes = canvas.panel(figure, left + column * (width + 0.2), 0.45, width, tall)
        for row, i in enumerate(which):
            _spot(axes, group.score.scale * group.values(i)[name], row, look[group.labels[i]])
        axes.axvline(0, color="#888888", linewidth=1, zorder=1.5)
        axes.set_yticks(range(len(which)), names if column == 0 else [""] * len(which), fontsize=canvas.SMALL)
        axes.set(ylim=(len(which) - 0.5, -0.5), xlabel="accuracy points" if group.score.percent else group.score.name)
        axes.set_title(name.replace("_", " "), pad=4)
        axes.tick_params(axis="y", length=0)
    return figure


def _spot(axes: Axes, values: Array, row: int, look: Look) -> None:
    """One strategy: a small dot for every seed, their mean, and its interval."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    mean, half = metrics.mean_interval(values)
    axes.plot(values, np.full(len(values), row + 0.25), ".", color=look.colour, alpha=0.4, markersize=4,
              markeredgewidth=0)
    if not np.isnan(half):
        axes.plot([mean - half, mean + half], [row, row], "|-", color=look.colour, linewidth=1.2, markersize=5)
    axes.plot(mean, row, look.marker, color=look.colour, markersize=5)


def plane(group: Group, look: Mapping[str, Look]) -> Figure:
    """Final accuracy against forgetting; the upper left corner is best."""
    which = shown(group)
    names = canvas.names(group, which)
    figure, axes = canvas.beside(names, group.score.named("Final accuracy against forgetting"), group)
    ends = [_point(axes, group.values(i)["forgetting"], group.values(i)["average_accuracy"], look[group.labels[i]],
                   group.score.scale) for i in which]
    axes.set(xlabel="forgetting" + _points_of(group), ylabel=_last(group))
    axes.margins(0.06)
    _within_bounds(axes, group)
    canvas.labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def _last(group: Group) -> str:
    return group.score.named("average accuracy after the last task") + group.score.unit


def _point(axes: Axes, x: Array, y: Array, look: Look, scale: float) -> tuple[float, float] | None:
    """Draws the mean of two metrics with both intervals and returns its position, or None if nothing was measured."""
    kept = np.isfinite(x) & np.isfinite(y)
    if not kept.any():
        return None
    across, wide, up, high = (float(v) for a in (x, y) for v in metrics.mean_interval(scale * a[kept]))
    if not np.isnan(high):
        wide = wide if np.ptp(x[kept]) else 0.0
        axes.plot([across - wide, across + wide, np.nan, across, across], [up, up, np.nan, up - high, up + high],
                  color=look.colour, linewidth=0.9, alpha=0.7)
    axes.plot(across, up, look.marker, color=look.colour, markersize=6)
    return across, up


def _within_bounds(axes: Axes, group: Group) -> None:
    """Limits the vertical axis to possible accuracies, which intervals over few seeds exceed."""
    if not group.score.percent:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -3), min(high, 103))


def within(group: Group, look: Mapping[str, Look]) -> Figure:
    """Accuracy within tasks: on the first task, and on average over all tasks before the current one."""
    which = [i for i in shown(group) if "curve" in group.runs[i].logs]
    names = canvas.names(group, which)
    tall = max(1.6, canvas.height(names))
    left, right = 0.6, canvas.wide(names) + 0.35
    figure = canvas.blank(2 * tall + 1.5)
    canvas.headline(figure, group.score.named("Accuracy within tasks"), group)
    upper, lower = (canvas.panel(figure, left, bottom, canvas.WIDTH - left - right, tall)
                    for bottom in (0.85 + tall, 0.45))
    for axes, first, title in ((upper, True, "task 1"), (lower, False, "mean over the tasks before the current one")):
        ends = []
        for i in which:
            at, values = inside(group, i, first)
            mean, half = (group.score.scale * v for v in metrics.mean_interval(values))
            style = look[group.labels[i]]
            axes.plot(at, mean, color=style.colour, linestyle=style.dash, linewidth=1.1)
            if len(values) > 1 and len(which) <= canvas.BANDS:
                axes.fill_between(at, mean - half, mean + half, color=style.colour, alpha=0.15, linewidth=0)
            good = np.flatnonzero(np.isfinite(mean))
            ends.append((float(at[good[-1]]), float(mean[good[-1]])) if len(good) else None)
        axes.set_xlim(0, group.n_tasks * 1.01)
        axes.set(ylabel=group.score.name + group.score.unit, xlabel="tasks learned" if not first else "")
        axes.set_title(title, pad=3, loc="left")
        canvas.frame_ticks(axes, group.score.percent)
        canvas.labels(axes, ends, names, [look[group.labels[i]].colour for i in which])
    return figure


def inside(group: Group, i: int, first: bool) -> tuple[Array, Array]:
    """The times [P] of all measurements of run `i`, in tasks, and its accuracies then [S, P].

    Args:
        group: the runs.
        i: index of the run.
        first: whether the accuracy is that on task 1; otherwise it is the mean over the tasks before the current one.

    A step of a task of K steps counts 1 / K. If the record does not have K, the task is taken to end at the next
    multiple of `eval_every` after its last measurement.
    """
    run = group.runs[i]
    step, between = run.logs["curve_step"], run.spec.get("eval_every") or 1
    points: list[tuple[float, int, Array]] = []
    for t in range(group.n_tasks):
        own = np.flatnonzero(step[:, 0] == t)
        length = float(np.max(run.logs["steps"][:, t])) if "steps" in run.logs else float(
            step[own, 1].max() + between if len(own) else 1)
        points += [(t + step[e, 1] / length, t, run.logs["curve"][:, e]) for e in own]
        points.append((t + 1.0, t, run.accuracy[:, t + 1]))
    every = [(at, a[:, 0] if first else a[:, :t].mean(-1)) for at, t, a in points if first or t > 0]
    kept = [(at, a) for at, a in every if np.isfinite(a).any()]
    if not kept:
        return np.zeros(0), np.zeros((len(run.accuracy), 0))
    return np.array([at for at, _ in kept]), np.stack([a for _, a in kept], 1)


def cost(group: Group, look: Mapping[str, Look]) -> Figure:
    """Final accuracy against cost, one panel for each kind of cost in which two runs differ."""
    which = shown(group)
    names = canvas.names(group, which)
    kinds = compared(group)
    left, right, top = 0.6, canvas.wide(names) + 0.35, 0.62
    tall = max(2.3, canvas.height(names))
    figure = canvas.blank(top + tall + 0.5)
    canvas.headline(figure, group.score.named("Final accuracy against cost"), group)
    width = (canvas.WIDTH - left - right) / len(kinds)
    colours, scale = [look[group.labels[i]].colour for i in which], group.score.scale
    for column, kind in enumerate(kinds):
        axes = canvas.panel(figure, left + column * width, 0.5, width - 0.12, tall)
        ends = []
        for i in which:
            x, values = kind.of(group.runs[i]), group.values(i)["average_accuracy"]
            style = look[group.labels[i]]
            ends.append(None if x is None else _point(axes, np.full(len(values), x / scale), values, style, scale))
        found = [x for i in which if (x := kind.of(group.runs[i])) is not None]
        if min(found) > 0 and max(found) / min(found) > 20:
            axes.set_xscale("log")
        axes.margins(0.1)
        _within_bounds(axes, group)
        axes.set_xlabel(kind.title)
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel(_last(group))
        canvas.few_ticks(axes)
        if kind is kinds[-1]:
            have = [end or _unplaced(axes, scale * group.values(i)["average_accuracy"])
                    for end, i in zip(ends, which, strict=True)]
            canvas.labels(axes, have, names, colours)
    return figure


def compared(group: Group) -> list[Cost]:
    """The kinds of cost in which two of the runs in the figure differ."""
    runs = [group.runs[i] for i in shown(group) if np.isfinite(group.values(i)["average_accuracy"]).any()]
    return [kind for kind in COSTS if len({kind.of(run) for run in runs} - {None}) > 1]


def _unplaced(axes: Axes, values: Array) -> tuple[float, float] | None:
    """The position of the label of a run whose cost is unknown: beside its accuracy."""
    finite = values[np.isfinite(values)]
    return (axes.get_xlim()[1], float(finite.mean())) if len(finite) else None


FIGURES = {"curves": curves, "forgetting": forgetting, "tasks": tasks, "matrix": matrix, "transfer": transfer,
           "within": within, "plane": plane, "cost": cost}


def drawable(group: Group) -> list[str]:
    """The names of the figures for which a group has measurements."""
    def measured(*names: str) -> bool:
        """Whether a seed of a run in the figure has all of these metrics."""
        return any(np.isfinite(sum(group.values(i).get(name, np.array(np.nan)) for name in names)).any()
                   for i in shown(group))

    runs = [group.runs[i] for i in shown(group)]
    needs = dict.fromkeys(("matrix", "tasks"), group.n_tasks > 1 and any(np.isfinite(r.accuracy).any() for r in runs))
    needs |= {"curves": _points(metrics.average_curve(r.accuracy) for r in runs) > 1,
              "forgetting": _points(metrics.forgetting_curve(r.accuracy) for r in runs) > 0,
              "transfer": measured("backward_transfer") or measured("forward_transfer"),
              "plane": measured("forgetting", "average_accuracy"),
              "within": any("curve" in run.logs for run in runs),
              "cost": bool(compared(group))}
    return [name for name in FIGURES if needs[name]]


def _points(curves: Iterable[Array]) -> int:
    """The largest number of measured points among curves [S, P]."""
    return max((int(np.isfinite(values).any(0).sum()) for values in curves), default=0)
