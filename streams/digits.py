"""Streams from the 1,797 handwritten 8x8 digits that come with scikit-learn: real images without a download."""

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
    """Rotated digits: the 8x8 digits of scikit-learn under a different rotation in each task.

    Args:
        tasks: number of tasks T, at least 1; the angle of task t is drawn for each seed from the t-th of T equal bins
            of [0, 180) degrees.
        examples: training images of each task, drawn for each seed and task; None uses all 1,442. The default is a
            multiple of the batch size, because a last batch of two examples would disturb the network.
        scenario: 'domain' (10 output units shared by all tasks), or 'class' or 'task' (10 output units per task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: `examples` exceeds the number of training images.

    Source: the digits of Alpaydin & Kaynak 1998 that scikit-learn's `load_digits` returns; a fifth of each class is
        used for testing. The angles are drawn as in Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    options = {"tasks": tasks, "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return build.rotated("rotated-digits-v1", seeds, _digits(), tasks=tasks, examples=examples, scenario=scenario,
                         boundaries=boundaries, defaults=_DEFAULTS | {"source": "rotated-digits"}, options=options)


def permuted(seeds: Sequence[int], *, tasks: int = 5, examples: int | None = 1440, scenario: str = "domain",
             boundaries: bool = True) -> Stream:
    """Permuted digits: the 8x8 digits of scikit-learn under a different permutation of the pixels in each task.

    Args:
        tasks: number of tasks, at least 1; every task's permutation is drawn for each seed.
        examples, scenario, boundaries: as in rotated digits.

    Raises:
        ValueError: `examples` exceeds the number of training images.

    Source: the digits are those of rotated digits; permutations as in Goodfellow et al. 2013, arXiv:1312.6211.
    """
    options = {"tasks": tasks, "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return build.permuted("permuted-digits-v1", seeds, _digits(), tasks=tasks, examples=examples, scenario=scenario,
                          boundaries=boundaries, defaults=_DEFAULTS | {"source": "permuted-digits"}, options=options)


def split(seeds: Sequence[int], *, tasks: int = 5, classes_per_task: int = 2, scenario: str = "class",
          boundaries: bool = True) -> Stream:
    """Split digits: the 8x8 digits of scikit-learn, two new classes in each task.

    Args:
        tasks: number of tasks, at least 1.
        classes_per_task: classes of each task, drawn for each seed.
        scenario: 'class' (one output unit per class), 'task' (the same, and the learner is told the task) or 'domain'
            (one output unit per position within a task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        ValueError: the tasks need more than 10 classes.

    Source: the digits are those of rotated digits; scenarios as in van de Ven & Tolias 2019, arXiv:1904.07734.
    """
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "scenario": scenario, "boundaries": boundaries}
    return build.split("split-digits-v1", seeds, _digits(), tasks=tasks, classes_per_task=classes_per_task,
                       scenario=scenario, boundaries=boundaries, defaults=_DEFAULTS, options=options)


def rotations(*, domains: int = 100) -> Source:
    """The source of rotated digits: the training images under 100 rotations.

    Args:
        domains: number of rotations, drawn once from [0, 180) degrees; no stream uses them.
    """
    return build.rotations("rotated-digits-v1", _digits(), count=domains, options={"domains": domains})


def permutations(*, domains: int = 100) -> Source:
    """The source of permuted digits: the training images under 100 permutations of the pixels.

    Args:
        domains: number of permutations, drawn once; no stream uses them.
    """
    return build.permutations("permuted-digits-v1", _digits(), count=domains, options={"domains": domains})


def _digits() -> build.Images:
    """All 1,797 digits, in tensors of their own; a fifth of every class, the same for every seed, are test images."""
    table = torch.from_numpy(_table())
    x, y = table[:, :-1].to(torch.uint8).view(-1, 1, 8, 8), table[:, -1].to(torch.int64)
    order = torch.randperm(len(y), generator=generator("digits", "test"))
    classes = [order[y[order] == c] for c in range(10)]
    test = torch.cat([c[:len(c) // 5] for c in classes]).sort().values
    train = torch.cat([c[len(c) // 5:] for c in classes]).sort().values
    return build.Images(x, y, train, test, scale=1 / 16, names=[f"digits/{c}" for c in range(10)])


@cache  # reading them takes 0.1 s, longer than some runs
def _table() -> np.ndarray:
    """The digits [1797, 65], one per row: pixels, then the class.

    They are read from scikit-learn's own file, because importing scikit-learn takes 2.5 s, longer than torch.
    """
    package = find_spec("sklearn")
    for place in package.submodule_search_locations or () if package else ():
        file = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version of scikit-learn that has the file elsewhere

    pixels, target = load_digits(return_X_y=True)
    return np.column_stack([pixels, target])
