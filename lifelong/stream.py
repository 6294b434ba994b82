"""What is learned from: a pool of examples, and the rows of it that each task trains and tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lifelong.augment import NONE, Augmentation, augmentation
from lifelong.host import gathered
from lifelong.randomness import many

SCENARIOS = ("task", "domain", "class")


@dataclass(frozen=True)
class Pool:
    """Every example once, on the device, as one lane (one seed) sees it.

    A row is `variant * N + example`: the variant says which of the lane's transforms applies, so a rehearsed row of
    an old task comes back as that task saw it, and no transformed copy is stored.

    Attributes:
        x: examples [N, *shape], or [N, D + 1] where `warp` is given (D pixels and one blank).
        y: class of each example [N], int64.
        shape: shape of one fetched example, without the batch axis.
        classes: [T, C] bool, the output units that belong to each task.
        scenario: 'task', 'domain' or 'class' incremental (van de Ven & Tolias 2019, arXiv:1904.07734, table 1).
        scale: what integer pixels are multiplied by; [C, 1, 1] where channels differ, and then all pixels are.
        dtype: of fetched examples; float64 makes every computation exact enough to compare stacks bit for bit.
        shift: [C, 1, 1], what is then added to each channel; None: nothing.
        augment: how examples are changed at random where they are learned.
        host: whether `x` stays in the host's memory, whatever device the rest is on.
        warp: [V, D] int64, the source pixel of each pixel in each variant; D stands for the blank. None: as stored.
        label: [V, K] int64, the output unit of each class in each variant. None: the class itself.
    """

    x: Tensor
    y: Tensor
    shape: tuple[int, ...]
    classes: Tensor
    scenario: str = "class"
    scale: float | Tensor = 1.0
    dtype: torch.dtype = torch.float32
    warp: Tensor | None = None
    label: Tensor | None = None
    shift: Tensor | None = None
    augment: Augmentation | None = None
    host: bool = False

    @property
    def n_tasks(self) -> int:
        """Tasks of the stream, T."""
        return self.classes.shape[-2]

    @property
    def n_classes(self) -> int:
        """Output units of a learner on this stream, C."""
        return self.classes.shape[-1]

    def lane(self, tensors: Mapping[str, Any]) -> Pool:
        """The same examples with one lane's own `classes`, `warp` and `label`."""
        return replace(self, **tensors)

    def fetch(self, rows: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples [B, *shape] and their output units [B] for `rows` [B]; a pad (-1) gives an arbitrary example.

        Args:
            rows: of the pool.
            u: [1], a uniform number that all examples are augmented by, each in its own way; None: they are not.
        """
        x, y = self.stored(rows)
        return self.real(self.augmented(x, u)), y

    def augmented(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Stored examples [..., n, *shape] as `augment` changes them by `u` [..., 1]; where there is none, as given.

        The numbers of the first examples do not depend on how many there are, so what is rehearsed beside a batch does
        not change how the batch is augmented.
        """
        if u is None or self.augment is None:
            return x
        n, draws = x.shape[u.dim() - 1], self.augment.draws
        return self.augment.apply(x.flatten(0, u.dim() - 1), many(u, n * draws).view(-1, draws)).view(x.shape)

    def stored(self, rows: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same with examples in the type that the pool keeps, for `real` to be called on later.

        Args:
            rows: of the pool.
            x: the examples that they are of, before any warp, where these were gathered already.
        """
        rows = rows.clamp(min=0)
        example, variant = rows, rows
        if self.warp is not None or self.label is not None:
            example, variant = rows % len(self.y), rows // len(self.y)
        if x is None:
            x = gathered(self.x, example) if self.host else self.x.index_select(0, example)
        y = self.y.index_select(0, example)
        if self.warp is not None:
            # Two plain gathers: indexing by both at once takes three to five times as long. In blocks, for the int64
            # positions of 512 images are as much as a processor's cache holds.
            if len(x) <= 512:
                x = x.gather(1, self.warp.index_select(0, variant))
            else:
                x = torch.cat([part.gather(1, self.warp.index_select(0, v)) for part, v in
                               zip(x.split(512), variant.split(512), strict=True)])
            x = x.view(*rows.shape, *self.shape)
        return x, y if self.label is None else self.label[variant, y]

    def real(self, x: Tensor) -> Tensor:
        """Stored examples in the precision of training, integers scaled, or every channel normalised."""
        if self.shift is not None:
            return x.to(self.dtype, copy=True).mul_(self.scale).add_(self.shift)
        return x if x.dtype == self.dtype else x.to(self.dtype).mul_(self.scale)

    def rivals(self, y: Tensor) -> Tensor | None:
        """The output units that compete with each of `y` [B] in the loss, [B, C] bool; None where all of them do.

        Task-incremental learners are told the task, so only its units compete; else all C do, seen or not.
        """
        if self.scenario != "task":
            return None
        # Every unit belongs to one task here, so a unit's rivals are the units of that task.
        together = (self.classes.to(self.dtype).mT @ self.classes.to(self.dtype)) > 0
        return together[y]


@dataclass(frozen=True)
class Stream:
    """A sequence of tasks for S seeds: indices into one pool, checked at construction.

    Attributes:
        name: with its version, as `split-mnist-v1`; changed content is a new version.
        x: [N, *shape] uint8 or float, or [N, D + 1] where `warp` is given.
        y: [N] int64, classes 0..K-1 without gaps.
        train: [S, T, n] rows, -1 pads at the end of a task.
        test: [S, T, m] rows, likewise.
        classes: [S, T, C] bool, the output units that belong to each task.
        shape: shape of one example.
        scenario: 'task', 'domain' or 'class'.
        boundaries: whether the learner is told where a task ends.
        ordered: whether the rows of a task are learned in the order given, in place of one drawn for each pass.
        retention: whether accuracy on the training rows of the tasks so far is measured as well.
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

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise ValueError(f"{self.name}: scenario {self.scenario!r} is none of {', '.join(SCENARIOS)}")
        self._check_channels()
        self._check_examples()
        self._check_rows()
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
        pool = Pool(x, self.y.to(device), self.shape, self.classes[0].to(device), self.scenario, self.scale, dtype,
                    augment=augmentation(self.augment), host=host)
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

    def _variants(self) -> int:
        return next((v.shape[1] for v in (self.warp, self.label) if v is not None), 1)

    def _check_channels(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"{self.name}: give mean and std, or neither")
        if self.mean is not None and self.std is not None and not (
                len(self.shape) == 3 and len(self.mean) == len(self.std) == self.shape[0] and min(self.std) > 0):
            raise ValueError(f"{self.name}: mean and std must be a number for each channel, std above 0, got "
                             f"{tuple(self.mean)} and {tuple(self.std)} for examples of shape {tuple(self.shape)}")
        if self.augment != NONE and len(self.shape) != 3:
            raise ValueError(f"{self.name}: {self.augment} is for images [channels, height, width], got examples of "
                             f"shape {tuple(self.shape)}; use --augment none")

    def _check_examples(self) -> None:
        n = len(self.y)
        if self.y.dtype != torch.int64 or len(self.x) != n or n == 0:
            raise ValueError(f"{self.name}: needs as many int64 labels as examples, got {len(self.x)} examples and "
                             f"{n} labels of {self.y.dtype}")
        counts = torch.bincount(self.y) if int(self.y.min()) >= 0 else torch.zeros(1)
        if bool((counts == 0).any()):
            gap = int((counts == 0).nonzero()[0]) if len(counts) > 1 else int(self.y.min())
            raise ValueError(f"{self.name}: labels must run from 0 without a gap, but there is no example of class "
                             f"{gap} (largest label: {int(self.y.max())})")
        if self.warp is not None:
            pixels = self.x.shape[1] - 1
            if self.warp.shape[2] != pixels or int(self.warp.min()) < 0 or int(self.warp.max()) > pixels:
                raise ValueError(f"{self.name}: the warp must hold {pixels} pixel numbers from 0 to {pixels}")

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

    def _check_labels(self) -> None:
        if self.classes.dtype != torch.bool or self.classes.shape[:2] != self.train.shape[:2]:
            raise ValueError(f"{self.name}: classes must be bool [S, T, C], got {list(self.classes.shape)}")
        used = self.n_classes - self.spare
        if self.spare < 0 or not bool(self.classes[..., :used].any(1).all()):
            raise ValueError(f"{self.name}: an output unit belongs to no task")
        if bool(self.classes[..., used:].any()):
            raise ValueError(f"{self.name}: a spare output unit belongs to a task")
        if self.scenario == "task" and bool((self.classes.sum(1) > 1).any()):
            raise ValueError(f"{self.name}: task-incremental needs output units of their own for every task")
        n = len(self.y)
        for s in range(self.n_seeds):
            for kind, rows in (("train", self.train[s]), ("test", self.test[s])):
                at = rows.clamp(min=0)
                unit = self.y[at % n]
                if self.label is not None:
                    unit = self.label[s][at // n, unit]
                wrong = (rows >= 0) & ~self.classes[s].gather(1, unit.clamp(0, self.n_classes - 1))
                if bool(wrong.any()) or int(unit.max()) >= self.n_classes:
                    task = int(wrong.any(-1).nonzero()[0]) if bool(wrong.any()) else 0
                    raise ValueError(f"{self.name}: task {task} has {kind} examples whose unit is not one of its "
                                     f"classes (seed {s})")
