"""The common parts of all figures: style, layout, labels beside points, and file formats.

Figures are laid out by hand, in inches, because matplotlib's layout engine draws everything twice more and takes most
of the time.
"""

from __future__ import annotations

import atexit
import io
import itertools
import os
import re
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.group import Group, diverged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of Okabe & Ito without yellow, which is hard to see on white. 7 colours, 4 dashes and 9 markers are
# pairwise coprime, so neighbours differ in all three and the first 252 strategies all look different.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">")
BANDS = 6  # more bands than this would hide each other
WIDTH = 7.6  # inches, the width of a page, so that text keeps its size in print
SMALL = 7.5  # font size of labels, in points
LINE = 1.22 * SMALL / 72  # distance between lines of a label, in inches
LETTER = 0.6 * SMALL / 72  # width of a letter, in inches, slightly overestimated
INK = "#333333"
_DIVERGED = " (×\u00a0diverged)"
_LETTERS = [*range(0x20, 0x7F), *range(0xA0, 0x180), *map(ord, "–—…≈≤≥∞Σ√·−")]
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # searching a position for the title takes a tenth of the time
    "axes.unicode_minus": False,  # a character beyond ASCII needs a second font in a PDF
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "svg.fonttype": "none",  # text remains text, which is searchable and readable by screen readers
    "svg.hashsalt": "lifelong",
    "pdf.fonttype": 42,  # TrueType, as publishers require
}


class Look(NamedTuple):
    """The colour, dash and marker of a strategy in all figures."""

    colour: str
    dash: Any
    marker: str


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """The look of every label; a strategy has the same look in all groups."""
    labels = dict.fromkeys(label for group in groups for label in group.labels)
    return {label: Look(COLOURS[i % 7], _DASHES[i % 4], _MARKERS[i % 9]) for i, label in enumerate(labels)}


@contextmanager
def styled() -> Iterator[None]:
    """A context with the style of the figures, independent of the user's matplotlibrc."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def prepare() -> None:
    """Does, before processes are forked, what each of them would otherwise do."""
    import matplotlib.backends.backend_pdf
    import matplotlib.backends.backend_svg  # noqa: F401

    light_font()


def lighten(figure: Figure) -> None:
    """Sets all text in a font with fewer characters, because embedding the whole font takes half the time of a PDF."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    if set("".join(text.get_text() for text in texts)) <= set(map(chr, _LETTERS)) | {"\n"}:
        for text in texts:
            text.get_fontproperties().set_file(light_font())


@lru_cache(1)
def light_font() -> str:
    """A temporary font file: DejaVu Sans with European letters only and without ligatures; it is removed at exit."""
    from fontTools import subset
    from matplotlib.font_manager import findfont

    options = subset.Options(layout_features=[], drop_tables=["GSUB", "GPOS", "GDEF", "kern", "FFTM"], name_IDs=["*"])
    small = subset.Subsetter(options)
    small.populate(unicodes=_LETTERS)
    handle, path = tempfile.mkstemp(suffix=".ttf", prefix="lifelong-")
    os.close(handle)
    with subset.load_font(str(findfont("DejaVu Sans")), options) as font:
        small.subset(font)
        subset.save_font(font, path, options)
    atexit.register(partial(os.unlink, path))
    return path


def encoded(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of an `svg`, a `pdf`, or a `png` of 150 dots per inch."""
    content = io.BytesIO()
    metadata = {"svg": {"Date": None, "Creator": "lifelong"}, "png": {"Software": "lifelong"},
                "pdf": {"CreationDate": None, "Creator": "lifelong", "Producer": None}}[kind]
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # characters that the font lacks are shown as boxes
        figure.savefig(content, format=kind, dpi=150, metadata=metadata)
    return content.getvalue()


def curve(axes: Axes, group: Group, i: int, values: Array, look: Look, first: int, band: bool) -> Array:
    """Run `i`: mean over seeds of `values` [S, P] against tasks from `first` on, where every seed was measured; lines
    join these points. Returns the mean [P]."""
    every_mean, every_half = (group.score.scale * found for found in metrics.mean_interval(values))
    measured = np.flatnonzero(np.isfinite(every_mean))
    x, mean, half_width = first + measured, every_mean[measured], every_half[measured]
    every = max(1, len(x) // 10)
    some = slice(i % every, None, every)  # markers of neighbouring curves at different tasks
    axes.plot(x, mean, marker=look.marker, markevery=(i % every, every), label=group.labels[i], color=look.colour,
              linestyle=look.dash)
    if len(values) > 1 and band:
        axes.fill_between(x, mean - half_width, mean + half_width, color=look.colour, alpha=0.15, linewidth=0)
    elif len(values) > 1:
        axes.vlines(x[some], mean[some] - half_width[some], mean[some] + half_width[some], look.colour, linewidth=0.8)
    if diverged(group.runs[i]) and len(measured):
        axes.plot(x[-1], mean[-1], "x", color=look.colour, markersize=9, markeredgewidth=2, zorder=4)
    return every_mean


def blank(height: float) -> Figure:
    """An empty figure of this height in inches, made without pyplot and the user's backend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a position in inches."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def headline(figure: Figure, title: str, group: Group) -> None:
    """Writes the title of a figure and that of its group at the top left."""
    text = title + "\n" + (group.title if len(group.title) <= 105 else group.title[:101].rstrip() + " ...")
    figure.text(0.08 / WIDTH, 1 - 0.06 / figure.get_figheight(), text.replace("$", r"\$"), va="top", fontsize=8.5,
                linespacing=1.3)


def beside(names: Sequence[str], title: str, group: Group) -> tuple[Figure, Axes]:
    """A figure with one panel and space for labels at its right."""
    tall = max(2.9, height(names))
    figure = blank(tall + 1.0)
    headline(figure, title, group)
    return figure, panel(figure, 0.6, 0.5, WIDTH - 0.6 - wide(names) - 0.35, tall)


def names(group: Group, which: Sequence[int], width: int = 30) -> list[str]:
    """The labels of runs in lines of at most `width` letters, shortened such that they remain distinct."""
    texts = [" ".join(group.labels[i].split()) + _DIVERGED * diverged(group.runs[i]) for i in which]
    texts = [" " + text if text.startswith("_") else text for text in texts]  # legends omit labels such as _x
    found = [text.replace("$", r"\$") for text in _cut(texts, width)]
    return [name + f"\n {_DIVERGED}" if text.endswith(_DIVERGED) and _DIVERGED.strip() not in name else name
            for name, text in zip(found, texts, strict=True)]


def _cut(texts: Sequence[str], width: int) -> list[str]:
    """Each text in at most 4 lines; texts that would become equal lose their common beginning first."""
    found = [_lines(text, width) for text in texts]
    for cut in {one for one in found if found.count(one) > 1}:
        alike = [k for k, one in enumerate(found) if one == cut]
        first, last = (end(texts[k] for k in alike) for end in (min, max))
        equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        same = _whole("".join(letter for letter, _ in equal), width)
        begin = _whole(same[:max(0, min(3 * width // 2, len(same) - 6))], width)
        if begin:
            shorter = _cut([f"{begin.rstrip()} ... {texts[k][len(same):]}" for k in alike], width)
            for k, text in zip(alike, shorter, strict=True):
                found[k] = text
    return found


def _whole(text: str, width: int) -> str:
    """A text up to its last space, or else bracket or slash, if one is among its last `width` letters."""
    ends = [found.end() for pattern in (".* ", ".*[(/]") if (found := re.match(pattern, text))]
    return text[:next((end for end in ends if len(text) - end <= width), len(text))]


def _lines(text: str, width: int) -> str:
    """A text in lines; a word that is longer than a line is broken after a bracket or slash, if it has one."""
    words = [re.sub(r"(?<=[(/])(?=.)", "\0 ", word) if len(word) > width - 2 else word for word in text.split(" ")]
    lines = textwrap.wrap(" ".join(words), width, break_on_hyphens=False, subsequent_indent="  ", max_lines=4,
                          placeholder=" ...")
    return "\n".join(lines).replace("\0 ", "").replace("\0", "")


def height(names: Sequence[str]) -> float:
    """The height in inches of these names below each other."""
    return 0.1 + sum(0.05 + LINE * (name.count("\n") + 1) for name in names)


def wide(names: Sequence[str]) -> float:
    """The width in inches of the longest line."""
    return LETTER * max(len(line) for name in names for line in name.split("\n"))


def labels(axes: Axes, ends: Sequence[tuple[float, float] | None], names: Sequence[str],
            colours: Sequence[str]) -> None:
    """Draws each name at the right of its point, with a thin line to it, moved so that names do not overlap."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # fixes the limits, which matplotlib sets only when it draws
    tall = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    to_axes = axes.transData + axes.transAxes.inverted()
    at = {k: to_axes.transform(end) for k, end in enumerate(ends) if end is not None}
    order = sorted(at, key=lambda k: float(at[k][1]))
    heights = [(0.05 + LINE * (names[k].count("\n") + 1)) / tall for k in order]
    width = axes.get_position().width * axes.figure.get_figwidth()  # type: ignore[union-attr]
    for k, y in zip(order, apart([float(at[k][1]) for k in order], heights), strict=True):
        axes.plot([at[k][0], 1 + 0.1 / width, 1 + 0.22 / width], [at[k][1], y, y], color=colours[k], linewidth=0.6,
                  alpha=0.6, transform=axes.transAxes, clip_on=False, zorder=1)
        axes.text(1 + 0.26 / width, y, names[k], color=colours[k], fontsize=SMALL, va="center", linespacing=1.05,
                  transform=axes.transAxes)


def apart(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Positions in [0, 1], as near as possible to those wanted, at which labels of these heights do not overlap.

    The order is kept. This is isotonic regression (pool adjacent violators) of the positions minus the heights of the
    labels below.
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


def frame_ticks(axes: Axes, percent: bool, accuracy: bool = True) -> None:
    """Whole numbers of tasks below; at the side what was measured, 10 points at least of percent."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    if not percent:
        return
    low, high = axes.get_ylim()
    spare = max(0.0, 10 - (high - low)) / 2
    floor = -3.0 if accuracy else -103.0  # 3: a marker at 0 or 100 is not cut
    axes.set_ylim(max(low - spare, floor), min(high + spare, 103))


def few_ticks(axes: Axes) -> None:
    """Sets few and short tick labels at the horizontal axis of a narrow panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    log = axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6) if log else MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
