"""What is learned from: a pool of examples, and the rows of it that each task trains and tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.data.augment import NONE, augmentation
from lifelong.data.pool import Pool
from lifelong.data.problem import CLASSIFICATION, Problem
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.run import OptionError

SCENARIOS = ("task", "domain", "class")
_ROWS = 2**14  # examples that are checked at once


def as_tensors(thing: Any, names: Sequence[str]) -> None:
    """Makes tensors of those fields of a frozen dataclass that are numpy arrays or lists of numbers."""
    for name in names:
        value = getattr(thing, name)
        if value is not None and not isinstance(value, Tensor):
            object.__setattr__(thing, name, torch.as_tensor(value))


def _sum_of_bytes(t: Tensor) -> int:
    """The sum of the bytes of a tensor, eight at a time: a sum of single ones would take eight times their memory."""
    flat = t.contiguous().flatten().view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    whole = len(flat) // 8 * 8
    return int(flat[:whole].view(torch.int64).sum()) + int(flat[whole:].sum())


@dataclass(frozen=True)
class Stream:
    """A sequence of tasks for S seeds: indices into one pool, checked at construction.

    Attributes:
        name: with its version, as `split-mnist-v1`; changed content is a new version.
        x: [N, *shape] uint8 or float, or [N, D + 1] where `warp` is given; of any type where the problem leaves
            examples as they are.
        y: [N] int64, classes 0..K-1 without gaps; [N, C] numbers where the problem's targets are no classes.
        train: [S, T, n] rows, -1 pads at the end of a task.
        test: [S, T, m] rows, likewise.
        classes: [S, T, C] bool, the output units that belong to each task.
        shape: shape of one example.
        scenario: 'task', 'domain' or 'class'.
        boundaries: whether the learner is told where a task ends.
        ordered: whether the rows of a task are learned in the order given, in place of one drawn for each pass.
        retention: whether the training rows of the tasks so far are evaluated too, whenever these tasks are.
        evaluation: which tasks are evaluated after which task, see `lifelong.spec.evaluation.Evaluation`.
        problem: what a right answer is: the loss, the score, and how `x` is read.
        spare: output units, the last ones, that belong to no task: a learner may answer them, and is wrong.
        scale: what integer pixels are multiplied by, for example 1/255.
        mean, std: of each channel, for examples [C, H, W]: pixels are, once scaled, (pixel - mean) / std; None: as they
            are. `std` is above 0.
        augment: how examples are changed at random where they are learned, an expression such as "crop(padding=4) +
            flip"; where they are tested they never are. 'none': not at all.
        warp: [S, V, D], label: [S, V, K]: see `Pool`.
        defaults: what a run on this stream uses unless told otherwise: `model`, `optimizer`, `epochs`, `batch_size`.
        options: the arguments that made the stream, JSON values; with `name` they identify its content.
        content: names of what is tested, so that no start that was learned on it is used unnoticed.

    Raises:
        ValueError: where an invariant fails; the sentence names the task and what is wrong.
    """

    name: str
    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    classes: Tensor
    shape: tuple[int, ...]
    scenario: str = "class"
    boundaries: bool = True
    scale: float = 1.0
    warp: Tensor | None = None
    label: Tensor | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    content: frozenset[str] = frozenset()
    ordered: bool = False
    retention: bool = False
    spare: int = 0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    augment: str = NONE
    evaluation: str = "all"
    problem: Problem = CLASSIFICATION

    def __post_init__(self) -> None:
        as_tensors(self, ("x", "y", "train", "test", "classes", "warp", "label"))
        Evaluation.parse(self.evaluation)
        if self.scenario not in SCENARIOS:
            raise ValueError(f"{self.name}: scenario {self.scenario!r} is none of {', '.join(SCENARIOS)}")
        self._check_channels()
        self._check_examples()
        self._check_rows()
        self._check_units()
        if self.problem.classes:
            self._check_labels()

    @property
    def n_seeds(self) -> int:
        """Seeds, S."""
        return self.train.shape[0]

    @property
    def n_tasks(self) -> int:
        """Tasks, T."""
        return self.train.shape[1]

    @property
    def n_classes(self) -> int:
        """Output units, C."""
        return self.classes.shape[2]

    def pool(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, host: bool = False) -> Pool:
        """The shared part of every lane's pool, on `device`, with `host` save for the examples; `lanes` has the part
        that differs."""
        x = self.x if host else self.x.to(device)
        y = self.y.to(device) if self.problem.classes else self.y.to(device, dtype)
        pool = Pool(x, y, self.shape, self.classes[0].to(device), self.scenario, self.scale, dtype,
                    augment=augmentation(self.augment), host=host, problem=self.problem)
        if self.mean is None or self.std is None:
            return pool
        mean, std = (torch.tensor(v, dtype=torch.float64, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        scale = 1.0 if self.x.is_floating_point() else self.scale
        return replace(pool, scale=(scale / std).to(dtype), shift=(-mean / std).to(dtype))

    def lanes(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What differs from lane to lane, stacked: `classes`, and `warp` and `label` where the stream has them.

        Args:
            seeds: for each lane the position of its seed in this stream, 0..S-1.
        """
        at = torch.as_tensor(list(seeds))
        own = {"classes": self.classes, "warp": self.warp, "label": self.label}
        return {name: value[at].to(device) for name, value in own.items() if value is not None}

    def fingerprint(self) -> list[tuple[int, int]]:
        """For each tensor how often it was written into, and the sum of its bits: they change when somebody writes."""
        tensors = (self.x, self.y, self.train, self.test, self.classes, self.warp, self.label)
        return [(t._version, _sum_of_bytes(t)) for t in tensors if t is not None]

    def evaluated(self, learned: int) -> range:
        """The tasks, counted from 0, that are evaluated once `learned` tasks have been learned."""
        return Evaluation.parse(self.evaluation).tasks(learned, self.n_tasks)

    def _variants(self) -> int:
        return next((v.shape[1] for v in (self.warp, self.label) if v is not None), 1)

    def _check_channels(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{self.name}: give mean and std, or neither")
        if self.mean is not None and not self.problem.scaled:
            raise ValueError(f"{self.name}: mean and std are for pixels, and {self.problem.name} leaves examples as "
                             "they are")
        if self.mean is not None and self.std is not None and not (
                len(self.shape) == 3 and len(self.mean) == len(self.std) == self.shape[0] and min(self.std) > 0):
            raise ValueError(f"{self.name}: mean and std must be a number for each channel, std above 0, got "
                             f"{tuple(self.mean)} and {tuple(self.std)} for examples of shape {tuple(self.shape)}")
        if self.augment != NONE and len(self.shape) != 3:
            raise OptionError(f"{self.name}: {self.augment} is for images [channels, height, width], got examples of "
                              f"shape {tuple(self.shape)}; use augment='none'", "augment")

    def _check_examples(self) -> None:
        if len(self.x) != len(self.y) or len(self.y) == 0:
            raise ValueError(f"{self.name}: needs as many targets as examples, got {len(self.x)} examples and "
                             f"{len(self.y)} targets")
        self._check_finite()
        if self.problem.classes:
            self._check_classes()
        else:
            self._check_numbers()
        if self.warp is not None:
            pixels = self.x.shape[1] - 1
            if self.warp.shape[2] != pixels or int(self.warp.min()) < 0 or int(self.warp.max()) > pixels:
                raise ValueError(f"{self.name}: the warp must hold {pixels} pixel numbers from 0 to {pixels}")

    def _check_finite(self) -> None:
        for first, some in enumerate(self.x.split(_ROWS) if self.x.dtype.is_floating_point else ()):
            if bool((bad := ~some.isfinite()).any()):
                row, *at = bad.nonzero()[0].tolist()
                value = float(some[(row, *at)])
                raise ValueError(f"{self.name}: example {first * _ROWS + row} has the value {value} at {at}; values "
                                 "must be finite, so remove or repair such examples")

    def _check_classes(self) -> None:
        if self.y.dtype != torch.int64 or self.y.dim() != 1:
            raise ValueError(f"{self.name}: needs an int64 label for each example, got labels {list(self.y.shape)} of "
                             f"{self.y.dtype}")
        counts = torch.bincount(self.y) if int(self.y.min()) >= 0 else torch.zeros(1)
        if bool((counts == 0).any()):
            gap = int((counts == 0).nonzero()[0]) if len(counts) > 1 else int(self.y.min())
            raise ValueError(f"{self.name}: labels must run from 0 without a gap, but there is no example of class "
                             f"{gap} (largest label: {int(self.y.max())})")

    def _check_numbers(self) -> None:
        if not self.y.is_floating_point() or self.y.shape[1:] != (self.n_classes,) or not bool(self.y.isfinite().all()):
            raise ValueError(f"{self.name}: {self.problem.name} needs finite targets [N, {self.n_classes}], a number "
                             f"for each of the {self.n_classes} outputs, got {list(self.y.shape)} of {self.y.dtype}")
        if self.scenario != "domain" or self.label is not None or self.spare:
            raise ValueError(f"{self.name}: the targets of {self.problem.name} are no classes: the scenario must be "
                             "domain, and there can be no label and no spare unit")

    def _check_rows(self) -> None:
        limit = len(self.y) * self._variants()
        if self.train.dim() != 3 or self.test.dim() != 3 or self.train.shape[:2] != self.test.shape[:2]:
            raise ValueError(f"{self.name}: train [S, T, n] and test [S, T, m] must agree in S and T, got "
                             f"{list(self.train.shape)} and {list(self.test.shape)}")
        for kind, rows in (("train", self.train), ("test", self.test)):
            if int(rows.min()) < -1 or int(rows.max()) >= limit:
                raise ValueError(f"{self.name}: {kind} rows must lie between -1 and {limit - 1}, got "
                                 f"{int(rows.min())} to {int(rows.max())}")
            empty = (rows >= 0).sum(-1).min(0).values == 0
            if bool(empty.any()):
                raise ValueError(f"{self.name}: task {int(empty.nonzero()[0])} has no {kind} example")
            if bool(((rows[..., 1:] >= 0) & (rows[..., :-1] < 0)).any()):
                raise ValueError(f"{self.name}: {kind} rows must be padded at the end")
        for s in range(self.n_seeds):
            # Examples, not rows: a test digit seen in training under another angle is still a leak.
            seen = torch.zeros(len(self.y), dtype=torch.bool)
            rows = self.train[s]
            seen[rows[rows >= 0] % len(self.y)] = True
            asked = self.test[s]
            both = seen[asked[asked >= 0] % len(self.y)]
            if bool(both.any()):
                example = int((asked[asked >= 0] % len(self.y))[both][0])
                raise ValueError(f"{self.name}: example {example} is both trained and tested on (seed {s})")

    def _check_units(self) -> None:
        if (self.classes.dtype != torch.bool or self.classes.dim() != 3
                or self.classes.shape[:2] != self.train.shape[:2]):
            raise ValueError(f"{self.name}: classes must be bool [S, T, C], got {self.classes.dtype} "
                             f"{list(self.classes.shape)}")
        used = self.n_classes - self.spare
        if self.spare < 0 or not bool(self.classes[..., :used].any(1).all()):
            raise ValueError(f"{self.name}: an output unit belongs to no task")
        if bool(self.classes[..., used:].any()):
            raise ValueError(f"{self.name}: a spare output unit belongs to a task")
        if self.scenario == "task" and bool((self.classes.sum(1) > 1).any()):
            raise ValueError(f"{self.name}: task-incremental needs output units of their own for every task")

    def _check_labels(self) -> None:
        n = len(self.y)
        for s in range(self.n_seeds):
            for kind, rows in (("train", self.train[s]), ("test", self.test[s])):
                at = rows.clamp(min=0)
                unit = self.y[at % n]
                if self.label is not None:
                    unit = self.label[s][at // n, unit]
                wrong = (rows >= 0) & ~self.classes[s].gather(1, unit.clamp(0, self.n_classes - 1))
                wrong |= (unit < 0) | (unit >= self.n_classes)  # of pads as well, for their units are looked up too
                if bool(wrong.any()):
                    raise ValueError(f"{self.name}: task {int(wrong.any(-1).nonzero()[0])} has {kind} examples whose "
                                     f"unit is not one of its classes (seed {s})")
