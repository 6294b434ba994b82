"""Streams of synthetic handwritten characters: any number of classes without a download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lifelong.data import build
from lifelong.data.source import Source
from lifelong.data.stream import Stream
from lifelong.randomness import generator
from lifelong.spec.bounds import at_least

DRAWINGS, TRAINED = 20, 15
_SIDE, _STROKES, _STEPS, _KNOTS = 28, 4, 32, 4
# Random numbers of a stroke; the last _KNOTS are the knots of its curvature.
_NUMBERS = 10 + _KNOTS
_DEFAULTS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 20, "batch_size": 10,
             "source": "glyphs"}
_OTHERS = 1_000_000  # the first character that no stream uses


def split(seeds: Sequence[int], *, tasks: int = 10, classes_per_task: int = 5, classes: int | None = None,
          scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split glyphs: synthetic handwritten characters, five new ones per task, 15 training and 5 test drawings of each.

    Args:
        tasks: number of tasks, at least 1.
        classes_per_task: characters of each task.
        classes: size of the set of characters, the same for all seeds, from which each seed draws; None has exactly as
            many as the tasks need, so that seeds differ only in the order.
        scenario: 'class' (one output unit per character), 'task' (the same, and the learner is told the task) or
            'domain' (one output unit per position within a task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: the tasks need more than `classes` characters.

    Source: no paper. As in Omniglot (Lake et al. 2015, doi:10.1126/science.aab3050), a class has 20 drawings and a
        character is a few pen strokes, some of which begin on an earlier one; but the ink is bright on black.
    """
    name = "split-glyphs-v1"
    build.check_counts(name, seeds, tasks=tasks, classes_per_task=classes_per_task, classes=classes)
    x = drawings(tasks * classes_per_task if classes is None else classes)
    n_classes = len(x)
    rows = torch.arange(n_classes * DRAWINGS)
    images = build.Images(x.view(-1, 1, _SIDE, _SIDE), rows // DRAWINGS, rows[rows % DRAWINGS < TRAINED],
                          rows[rows % DRAWINGS >= TRAINED], scale=1 / 255,
                          names=[f"glyphs/{c}" for c in range(n_classes)])
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "classes": classes, "scenario": scenario,
               "boundaries": boundaries}
    return build.split(name, seeds, images, tasks=tasks, classes_per_task=classes_per_task, scenario=scenario,
                       boundaries=boundaries, defaults=_DEFAULTS, options=options)


def source(*, classes: int = 500, first: int = 0, turned: bool = False) -> Source:
    """The source of glyphs: synthetic characters that no stream uses, 20 drawings each.

    Args:
        classes: number of characters.
        first: index of the first character, 0 or more; sources whose ranges do not overlap share no character.
        turned: whether each character rotated by 90, 180 and 270 degrees is added as a further class.
    """
    build.check_counts("glyphs-v1", [0], classes=classes)
    at_least(0, first=first)
    rows, begin = torch.arange(classes * DRAWINGS), _OTHERS + first
    images = build.Images(drawings(classes, begin).view(-1, 1, _SIDE, _SIDE), rows // DRAWINGS, rows, rows[:0],
                          scale=1 / 255, names=[f"glyphs/{begin + c}" for c in range(classes)])
    return build.source("glyphs-v1", images, turned=turned,
                        options={"classes": classes, "first": first, "turned": turned})


def drawings(classes: int, start: int = 0) -> Tensor:
    """Twenty drawings of each of `classes` characters, uint8 [classes, 20, 28, 28]; ink is up to 255, paper is 0.

    Args:
        classes: number of characters.
        start: index of the first; the drawings of a character depend on its index only.
    """
    # 100 at a time, because the pen's marks take a hundred times the memory of the images.
    return torch.cat([_draw(range(start + first, start + min(first + 100, classes)))
                      for first in range(0, classes, 100)])


def _draw(characters: range) -> Tensor:
    """The drawings of some characters, uint8 [A, 20, 28, 28].

    A stroke is the path of a pen that moves at constant speed while its direction changes. A drawing perturbs the
    directions, curvatures, lengths and starts of a character's strokes, then slants and shifts them, and has its own
    pen width.
    """
    # For each character one row of numbers for its shape, then one row per drawing for the perturbations. In float64,
    # so that rounding errors, which differ between processors, do not change the pixels.
    numbers = torch.stack([torch.randn(1 + DRAWINGS, _STROKES, _NUMBERS, generator=generator("glyphs", c),
                                       dtype=torch.float64) for c in characters])
    shape, blur = numbers[:, :1], numbers[:, 1:]
    chance = 0.5 * (1 + torch.erf(shape / math.sqrt(2)))
    heading = (chance[..., 0] * 8).floor() * math.pi / 4 + 0.25 * shape[..., 1] + 0.1 * blur[..., 0]
    strokes = 1 + torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 3, 3])[(chance[:, :, 0, 2] * 10).long().clamp(max=9)]
    # Straight, bent or curled. A single stroke is always curled, because many characters would otherwise look alike.
    bend = torch.where(chance[..., 3] < 0.25, 0.3, torch.where(chance[..., 3] < 0.65, 2.2, 5.0))
    bend = bend.where(strokes.unsqueeze(-1) > 1, 5.5).unsqueeze(-1)
    turns = bend * shape[..., -_KNOTS:] + 0.25 * blur[..., -_KNOTS:]
    turning = torch.nn.functional.interpolate(turns.flatten(0, 1), _STEPS, mode="linear", align_corners=True)
    angle = heading.unsqueeze(-1) + turning.view(*turns.shape[:3], _STEPS).cumsum(-1) / _STEPS
    length = (0.35 + 0.9 * chance[..., 4]) * (1 + 0.12 * blur[..., 1]) / torch.tensor([1.0, 1.5, 1.5, 1.5])
    path = torch.stack([angle.cos(), angle.sin()], -1).cumsum(-2) * length[..., None, None] / _STEPS
    drawn = (torch.arange(_STROKES) < strokes.unsqueeze(-1)).expand(*path.shape[:3])
    return _ink(_fit(_join(path, chance, shape, blur), drawn, blur), drawn, 0.75 + 0.2 * blur[:, :, 0, 2].clamp(-2, 2))


def _join(path: Tensor, chance: Tensor, shape: Tensor, blur: Tensor) -> Tensor:
    """Strokes [A, D, strokes, steps, 2] moved to their starting points, on the previous stroke or beside it."""
    placed = [path[:, :, 0]]
    for k in range(1, _STROKES):
        before, stroke = placed[-1], path[:, :, k]
        at = (chance[:, :, k, 5] * _STEPS).long().clamp(max=_STEPS - 1)
        on = before.gather(2, at[..., None, None].expand(-1, path.shape[1], 1, 2))
        beside = before.mean(2, keepdim=True) + 0.35 * shape[:, :, k, None, 6:8]
        start = torch.where(chance[:, :, k, 8, None, None] < 0.6, on, beside) + 0.035 * blur[:, :, k, None, 6:8]
        # Half of the strokes have their middle at the starting point, which makes crosses and not only branches.
        middle = torch.where(chance[:, :, k, 9, None, None] < 0.5, stroke[:, :, _STEPS // 2, None], 0.0)
        placed.append(stroke - middle + start)
    return torch.stack(placed, 2)


def _fit(path: Tensor, drawn: Tensor, blur: Tensor) -> Tensor:
    """The path in pixels: scaled to the image, then slightly rotated, slanted, stretched and shifted."""
    seen = drawn[..., None, None]
    low = path.where(seen, torch.inf).amin((2, 3), keepdim=True)
    high = path.where(seen, -torch.inf).amax((2, 3), keepdim=True)
    path = (path - (low + high) / 2) * (0.68 * _SIDE / (high - low).amax(-1, keepdim=True).clamp(min=0.3))
    turn, slant, wide, tall = (0.09 * blur[:, :, k, 3, None, None] for k in range(_STROKES))
    x, y = path.unbind(-1)
    x, y = (x + slant * y) * (1 + wide), y * (1 + tall)
    x, y = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
    shift = 0.9 * blur[:, :, 0, 4:6].clamp(-2, 2) + (_SIDE - 1) / 2
    return torch.stack([x, y], -1) + shift[:, :, None, None]


def _ink(path: Tensor, drawn: Tensor, radius: Tensor) -> Tensor:
    """The image of a round pen of `radius` [A, D] along `path` [A, D, strokes, steps, 2], in pixels x, y."""
    n = path.shape[0] * path.shape[1]
    x, y = path.where(drawn[..., None, None], -9.0).float().reshape(n, -1, 1, 2).unbind(-1)
    near = torch.tensor([(i, j) for i in range(-2, 3) for j in range(-2, 3) if abs(i) + abs(j) < 4])
    column, row = x.round() + near[:, 0], y.round() + near[:, 1]
    mark = (radius.float().reshape(n, 1, 1) + 0.5 - ((column - x).square() + (row - y).square()).sqrt()).clamp(0, 1)
    # Marks outside the image, and unused strokes, go to a frame that is cut off.
    place = (row.clamp(-1, _SIDE) + 1) * (_SIDE + 2) + column.clamp(-1, _SIDE) + 1
    paper = torch.zeros(n, (_SIDE + 2) ** 2).scatter_reduce(1, place.long().flatten(1), mark.flatten(1), "amax")
    paper = (255 * paper).round().to(torch.uint8).view(*drawn.shape[:2], _SIDE + 2, _SIDE + 2)
    return paper[..., 1:-1, 1:-1].contiguous()
