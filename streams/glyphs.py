"""Streams of made-up characters, drawn by a seeded procedure: as many classes as asked for, nothing to download."""

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
# A stroke is made of this many random numbers, the last _KNOTS of which say how it turns.
_NUMBERS = 10 + _KNOTS
_DEFAULTS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 20, "batch_size": 10,
             "source": "glyphs"}
_OTHERS = 1_000_000  # the number of the first character that no stream has


def split(seeds: Sequence[int], *, tasks: int = 10, classes_per_task: int = 5, classes: int | None = None,
          scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split glyphs: made-up handwritten characters, 15 training and 5 test drawings each, five new ones in each task.

    Args:
        tasks: tasks, at least 1.
        classes_per_task: characters of each task.
        classes: characters to draw the stream's from, the same for all seeds; None = exactly as many as the tasks need,
            so that seeds differ in their order alone.
        scenario: 'class' (a unit for every character), 'task' (likewise, the task being told) or 'domain' (a unit for
            every place within a task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: where the tasks need more than `classes`.

    Source: no paper. Like Omniglot (Lake et al. 2015, doi:10.1126/science.aab3050) in its numbers and in that a
        character is a few pen strokes, some of which begin on an earlier one, but drawn in bright ink on black.
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
    """Made-up characters that no stream of glyphs has: what a start for them is learned from.

    Args:
        classes: characters, 20 drawings each.
        first: the first of them, 0 or more; others are other characters.
        turned: whether every character turned by 90, 180 and 270 degrees is a further class.
    """
    build.check_counts("glyphs-v1", [0], classes=classes)
    at_least(0, first=first)
    rows, begin = torch.arange(classes * DRAWINGS), _OTHERS + first
    images = build.Images(drawings(classes, begin).view(-1, 1, _SIDE, _SIDE), rows // DRAWINGS, rows, rows[:0],
                          scale=1 / 255, names=[f"glyphs/{begin + c}" for c in range(classes)])
    return build.source("glyphs-v1", images, turned=turned,
                        options={"classes": classes, "first": first, "turned": turned})


def drawings(classes: int, start: int = 0) -> Tensor:
    """Twenty drawings each of characters start, start + 1, ..., uint8 [classes, 20, 28, 28]: ink up to 255, paper 0.

    A character is always drawn the same, however many are asked for.
    """
    # In portions, because the pen's marks take a hundred times the memory of the image.
    return torch.cat([_draw(range(start + first, start + min(first + 100, classes)))
                      for first in range(0, classes, 100)])


def _draw(characters: range) -> Tensor:
    """The drawings of some characters, [A, 20, 28, 28].

    A stroke is a pen that moves at constant speed while its direction turns; a drawing is the character's strokes with
    directions, turns, lengths and starts a little off, then slanted, shifted and inked with a pen of its own.
    """
    # Of each character: first the numbers of its shape, then of each drawing those that blur it. In float64, so that
    # the last digit, in which processors differ, does not reach the rounded pixels.
    numbers = torch.stack([torch.randn(1 + DRAWINGS, _STROKES, _NUMBERS, generator=generator("glyphs", c),
                                       dtype=torch.float64) for c in characters])
    shape, blur = numbers[:, :1], numbers[:, 1:]
    chance = 0.5 * (1 + torch.erf(shape / math.sqrt(2)))
    heading = (chance[..., 0] * 8).floor() * math.pi / 4 + 0.25 * shape[..., 1] + 0.1 * blur[..., 0]
    strokes = 1 + torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 3, 3])[(chance[:, :, 0, 2] * 10).long().clamp(max=9)]
    # Straight, bent or curled; a stroke alone is always curled, or many characters would be one and the same line.
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
    """Strokes [A, D, strokes, steps, 2] moved to where they begin: on the stroke before, or beside it."""
    placed = [path[:, :, 0]]
    for k in range(1, _STROKES):
        before, own = placed[-1], path[:, :, k]
        at = (chance[:, :, k, 5] * _STEPS).long().clamp(max=_STEPS - 1)
        on = before.gather(2, at[..., None, None].expand(-1, path.shape[1], 1, 2))
        beside = before.mean(2, keepdim=True) + 0.35 * shape[:, :, k, None, 6:8]
        start = torch.where(chance[:, :, k, 8, None, None] < 0.6, on, beside) + 0.035 * blur[:, :, k, None, 6:8]
        # Half of the strokes are hung up by their middle: crosses, not only branches.
        hung = torch.where(chance[:, :, k, 9, None, None] < 0.5, own[:, :, _STEPS // 2, None], 0.0)
        placed.append(own - hung + start)
    return torch.stack(placed, 2)


def _fit(path: Tensor, drawn: Tensor, blur: Tensor) -> Tensor:
    """The path in pixels: fitted to the paper, then turned, slanted, stretched and shifted a little."""
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
    """What a round pen of `radius` [A, D] leaves along `path` [A, D, strokes, steps, 2], in pixels x, y."""
    n = path.shape[0] * path.shape[1]
    x, y = path.where(drawn[..., None, None], -9.0).float().reshape(n, -1, 1, 2).unbind(-1)
    near = torch.tensor([(i, j) for i in range(-2, 3) for j in range(-2, 3) if abs(i) + abs(j) < 4])
    column, row = x.round() + near[:, 0], y.round() + near[:, 1]
    mark = (radius.float().reshape(n, 1, 1) + 0.5 - ((column - x).square() + (row - y).square()).sqrt()).clamp(0, 1)
    # Marks beyond the paper's edge, where the hidden strokes are too, go to a frame that is cut off.
    place = (row.clamp(-1, _SIDE) + 1) * (_SIDE + 2) + column.clamp(-1, _SIDE) + 1
    paper = torch.zeros(n, (_SIDE + 2) ** 2).scatter_reduce(1, place.long().flatten(1), mark.flatten(1), "amax")
    paper = (255 * paper).round().to(torch.uint8).view(*drawn.shape[:2], _SIDE + 2, _SIDE + 2)
    return paper[..., 1:-1, 1:-1].contiguous()
