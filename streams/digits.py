"""Streams from the 1,797 handwritten 8x8 digits that come with scikit-learn: real images, nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from lifelong.data import build
from lifelong.data.source import Source
from lifelong.data.stream import Stream
from lifelong.randomness import generator

_DEFAULTS = {"model": "mlp(hidden=(100, 100))", "optimizer": "sgd(lr=0.1)", "epochs": 8, "batch_size": 16}


def rotated(seeds: Sequence[int], *, tasks: int = 5, examples: int | None = 1440, scenario: str = "domain",
            boundaries: bool = True) -> Stream:
    """Rotated digits: small real digits under another rotation in each task.

    Args:
        tasks: tasks, at least 1; task t's angle is drawn for each seed from the t-th of T equal bins of [0, 180).
        examples: images trained on in each task, drawn for each seed and task: as many as make whole
            batches, since a batch of two at the very end of a task shakes the network; None = all 1,442.
        scenario: 'domain' (10 output units), or 'class' or 'task' (10 units of its own for every task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: where more examples are asked for than there are.

    Source: the digits of Alpaydin & Kaynak 1998 that scikit-learn's `load_digits` returns; a fifth of each class is for
        testing. Angles as Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    options = {"tasks": tasks, "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return build.rotated("rotated-digits-v1", seeds, _digits(), tasks=tasks, examples=examples, scenario=scenario,
                         boundaries=boundaries, defaults=_DEFAULTS | {"source": "rotated-digits"}, options=options)


def permuted(seeds: Sequence[int], *, tasks: int = 5, examples: int | None = 1440, scenario: str = "domain",
             boundaries: bool = True) -> Stream:
    """Permuted digits: small real digits under another permutation of the pixels in each task.

    Args:
        tasks: tasks, at least 1; every task's permutation is drawn for each seed.
        examples, scenario, boundaries: as for rotated digits.

    Raises:
        ValueError: where more examples are asked for than there are.

    Source: digits as for rotated digits; permutations as Goodfellow et al. 2013, arXiv:1312.6211.
    """
    options = {"tasks": tasks, "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return build.permuted("permuted-digits-v1", seeds, _digits(), tasks=tasks, examples=examples, scenario=scenario,
                          boundaries=boundaries, defaults=_DEFAULTS | {"source": "permuted-digits"}, options=options)


def split(seeds: Sequence[int], *, tasks: int = 5, classes_per_task: int = 2, scenario: str = "class",
          boundaries: bool = True) -> Stream:
    """Split digits: small real digits, two new classes in each task.

    Args:
        tasks: tasks, at least 1.
        classes_per_task: classes of each task; which ones is drawn for each seed.
        scenario: 'class' (a unit for every class), 'task' (likewise, the task being told) or 'domain' (a unit for every
            place within a task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: where more than 10 classes are asked for.

    Source: digits as for rotated digits; scenarios as van de Ven & Tolias 2019, arXiv:1904.07734.
    """
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "scenario": scenario, "boundaries": boundaries}
    return build.split("split-digits-v1", seeds, _digits(), tasks=tasks, classes_per_task=classes_per_task,
                       scenario=scenario, boundaries=boundaries, defaults=_DEFAULTS, options=options)


def rotations(*, domains: int = 100) -> Source:
    """Small real digits under 100 rotations: what a start for rotated digits is learned from; training images alone.

    Args:
        domains: rotations, drawn once from all of [0, 180) degrees; no stream's are among them.
    """
    return build.rotations("rotated-digits-v1", _digits(), count=domains, options={"domains": domains})


def permutations(*, domains: int = 100) -> Source:
    """Small real digits under 100 permutations of the pixels: what a start for permuted digits is learned from.

    Args:
        domains: permutations, drawn once; no stream's are among them.
    """
    return build.permutations("permuted-digits-v1", _digits(), count=domains, options={"domains": domains})


@cache  # reading them takes 0.1 s, longer than many a run on them
def _digits() -> build.Images:
    """All 1,797 digits; a fifth of every class tests, the same fifth for every seed."""
    table = torch.from_numpy(_table())
    x, y = table[:, :-1].to(torch.uint8).view(-1, 1, 8, 8), table[:, -1].to(torch.int64)
    order = torch.randperm(len(y), generator=generator("digits", "test"))
    classes = [order[y[order] == c] for c in range(10)]
    test = torch.cat([c[:len(c) // 5] for c in classes]).sort().values
    train = torch.cat([c[len(c) // 5:] for c in classes]).sort().values
    return build.Images(x, y, train, test, scale=1 / 16, names=[f"digits/{c}" for c in range(10)])


def _table() -> np.ndarray:
    """A line a digit [1797, 65], its pixels and then its class, from the file that scikit-learn reads: importing that
    takes 2.5 s, longer than torch."""
    package = find_spec("sklearn")
    for place in package.submodule_search_locations or () if package else ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # of a version that keeps it elsewhere

    pixels, target = load_digits(return_X_y=True)
    return np.column_stack([pixels, target])
