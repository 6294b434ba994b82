"""What the figures share: their style, their place on the page, names beside points, and the files they become.

Figures are laid out by hand, in inches: matplotlib's own layout draws everything twice more, and takes most of the
time.
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

# Okabe & Ito's colours without the yellow, which is lost on white. 7 colours, 4 dashes and 9 markers share no divisor,
# so neighbours differ in all three and no two of the first 252 strategies look alike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", "X", ">")
BANDS = 6  # more bands than these hide each other
WIDTH = 7.6  # inches; a page's, so that the letters keep their size in print
SMALL = 7.5  # points, of labels
LINE = 1.22 * SMALL / 72  # inches from one line of a label to the next
LETTER = 0.6 * SMALL / 72  # inches, a little more than a letter takes
INK = "#333333"
_DIVERGED = " (×\u00a0diverged)"
_LETTERS = [*range(0x20, 0x7F), *range(0xA0, 0x180), *map(ord, "–—…≈≤≥∞Σ√·−")]
_STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titley": 1.0,  # not where matplotlib finds room for it, a tenth of the time
    "axes.unicode_minus": False,  # beyond ASCII a PDF takes a second font
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


@contextmanager
def styled() -> Iterator[None]:
    """The look of a figure whatever the user's matplotlibrc says, which is left as it was."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def prepare() -> None:
    """Does what every process that draws would do for itself."""
    import matplotlib.backends.backend_pdf
    import matplotlib.backends.backend_svg  # noqa: F401

    light_font()


def lighten(figure: Figure) -> None:
    """Sets all text in a font without what is not used: a PDF's own copy of the whole one takes half of its time."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    if set("".join(text.get_text() for text in texts)) <= set(map(chr, _LETTERS)) | {"\n"}:
        for text in texts:
            text.get_fontproperties().set_file(light_font())


@lru_cache(1)
def light_font() -> str:
    """A file of DejaVu Sans with European letters and without its tables of ligatures; removed at exit."""
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
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that the font lacks shows boxes
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
    """A figure of its own, in inches: pyplot and the user's backend are not involved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    return figure


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place in inches."""
    wide, tall = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / tall, width / wide, height / tall))


def headline(figure: Figure, title: str, group: Group) -> None:
    """What is shown, and of which runs, at the top on the left."""
    text = title + "\n" + (group.title if len(group.title) <= 105 else group.title[:101].rstrip() + " ...")
    figure.text(0.08 / WIDTH, 1 - 0.06 / figure.get_figheight(), text.replace("$", r"\$"), va="top", fontsize=8.5,
                linespacing=1.3)


def beside(names: Sequence[str], title: str, group: Group) -> tuple[Figure, Axes]:
    """One panel with room for labels at its right."""
    tall = max(2.9, height(names))
    figure = blank(tall + 1.0)
    headline(figure, title, group)
    return figure, panel(figure, 0.6, 0.5, WIDTH - 0.6 - wide(names) - 0.35, tall)


def names(group: Group, which: Sequence[int], width: int = 30) -> list[str]:
    """What labels say, in lines of at most `width` letters; of those that would be cut alike, what sets them apart."""
    texts = [" ".join(group.labels[i].split()) + _DIVERGED * diverged(group.runs[i]) for i in which]
    texts = [" " + text if text.startswith("_") else text for text in texts]  # a legend leaves _x out
    found = [text.replace("$", r"\$") for text in _cut(texts, width)]
    return [name + f"\n {_DIVERGED}" if text.endswith(_DIVERGED) and _DIVERGED.strip() not in name else name
            for name, text in zip(found, texts, strict=True)]


def _cut(texts: Sequence[str], width: int) -> list[str]:
    """Each text in 4 lines at most. Where several would end up the same, what they have in common is cut first."""
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
    """A text up to its last space, else bracket or slash, where one is among its last `width` letters."""
    ends = [found.end() for pattern in (".* ", ".*[(/]") if (found := re.match(pattern, text))]
    return text[:next((end for end in ends if len(text) - end <= width), len(text))]


def _lines(text: str, width: int) -> str:
    """A text in lines; a word that is longer than one goes on after a bracket or a slash, where it has any."""
    words = [re.sub(r"(?<=[(/])(?=.)", "\0 ", word) if len(word) > width - 2 else word for word in text.split(" ")]
    lines = textwrap.wrap(" ".join(words), width, break_on_hyphens=False, subsequent_indent="  ", max_lines=4,
                          placeholder=" ...")
    return "\n".join(lines).replace("\0 ", "").replace("\0", "")


def height(names: Sequence[str]) -> float:
    """Inches that these names take one under the other."""
    return 0.1 + sum(0.05 + LINE * (name.count("\n") + 1) for name in names)


def wide(names: Sequence[str]) -> float:
    """Inches that the longest line takes."""
    return LETTER * max(len(line) for name in names for line in name.split("\n"))


def labels(axes: Axes, ends: Sequence[tuple[float, float] | None], names: Sequence[str],
            colours: Sequence[str]) -> None:
    """Each name at the right of its point, moved up or down where names would overlap, and a thin line to it."""
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # matplotlib puts both off until it draws
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
    """Few and short numbers at the axis below, for panels that are narrow."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    log = axes.get_xscale() == "log"
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6) if log else MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if abs(x) >= 10_000 else f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
