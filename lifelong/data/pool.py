"""The examples of a stream, by row, as one lane sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lifelong.data.augment import Augmentation
from lifelong.data.prefetch import gathered
from lifelong.data.problem import CLASSIFICATION, Problem
from lifelong.randomness import many


@dataclass(frozen=True)
class Pool:
    """All examples, each stored once, on the device, as one lane (one seed) sees them.

    A row is `variant * N + example`. The variant selects one of the lane's transforms, so a replayed row of an old task
    is transformed as in that task, and no transformed copies are stored.

    Attributes:
        x: examples [N, *shape], or [N, D + 1] if `warp` is given (D pixels and one blank).
        y: target of each example: its class [N], int64, or numbers [N, K].
        shape: shape of one fetched example, without the batch axis.
        classes: [T, C] bool, the output units that belong to each task.
        scenario: 'task', 'domain' or 'class' incremental (van de Ven & Tolias 2019, arXiv:1904.07734, table 1).
        scale: factor of integer pixels; [C, 1, 1] if channels differ, and then it applies to all pixels.
        dtype: type of fetched examples; float64 makes all computations exact enough to compare stacks bit for bit.
        shift: [C, 1, 1], added to each channel after scaling; None adds nothing.
        augment: random augmentation of training examples.
        host: whether `x` stays in the host's memory, whatever the device of the other tensors.
        warp: [V, D] int64, the source pixel of each pixel in each variant, where D is the blank; None for no warp.
        label: [V, K] int64, the output unit of each class in each variant; None if it is the class itself.
        problem: the kind of problem, such as classification.
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
    problem: Problem = CLASSIFICATION

    @property
    def n_tasks(self) -> int:
        """Number of tasks of the stream, T."""
        return self.classes.shape[-2]

    @property
    def n_classes(self) -> int:
        """Number of output units of a learner on this stream, C."""
        return self.classes.shape[-1]

    def lane(self, tensors: Mapping[str, Any]) -> Pool:
        """The same examples with one lane's own `classes`, `warp` and `label`."""
        lane = object.__new__(Pool)  # `replace` takes longer than a hook
        lane.__dict__.update(self.__dict__, **tensors)
        return lane

    def fetch(self, rows: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples [B, *shape] and their targets [B] or [B, K] for `rows` [B]; padding (-1) gives an arbitrary example.

        Args:
            rows: rows of the pool.
            u: [1], a uniform number from which every example gets its own augmentation; None does not augment.
        """
        x, y = self.stored(rows)
        return self.real(self.augmented(x, u)), y

    def augmented(self, x: Tensor, u: Tensor | None) -> Tensor:
        """Stored examples [..., n, *shape], augmented with `u` [..., 1]; unchanged if there is no augmentation.

        The random numbers of the first examples do not depend on the number of examples, so replayed examples do not
        change the augmentation of a batch.
        """
        if u is None or self.augment is None:
            return x
        n, draws = x.shape[u.dim() - 1], self.augment.draws
        return self.augment.apply(x.flatten(0, u.dim() - 1), many(u, n * draws).view(-1, draws)).view(x.shape)

    def stored(self, rows: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `fetch`, but with examples in the stored type, which `real` converts later.

        Args:
            rows: rows of the pool.
            x: the examples of these rows before any warp, if they were gathered already.
        """
        rows = rows.clamp(min=0)
        example, variant, n = rows, rows, self.y.shape[0]
        if self.warp is not None or self.label is not None:
            example, variant = rows % n, rows // n
        if x is None:
            x = gathered(self.x, example) if self.host else self.x.index_select(0, example)
        y = self.y.index_select(0, example)
        if self.warp is not None:
            # Two plain gathers, because indexing with both at once takes three to five times as long; in blocks,
            # because the int64 positions of 512 images fill a processor's cache.
            if x.shape[0] <= 512:
                x = x.gather(1, self.warp.index_select(0, variant))
            else:
                x = torch.cat([part.gather(1, self.warp.index_select(0, v)) for part, v in
                               zip(x.split(512), variant.split(512), strict=True)])
            x = x.view(*rows.shape, *self.shape)
        return x, y if self.label is None else self.label[variant, y]

    def real(self, x: Tensor) -> Tensor:
        """Stored examples in the training precision, scaled if integers, or normalised by channel if there is a shift.

        Examples of problems that do not scale them are unchanged.
        """
        if not self.problem.scaled:
            return x
        if self.shift is not None:
            return x.to(self.dtype, copy=True).mul_(self.scale).add_(self.shift)
        return x if x.dtype == self.dtype else x.to(self.dtype).mul_(self.scale)

    def rivals(self, y: Tensor) -> Tensor | None:
        """The output units that compete with each of `y` [B] in the loss, [B, C] bool; None if all of them do.

        Task-incremental learners are given the task, so only its units compete; otherwise all C do, seen or not.
        """
        if self.scenario != "task":
            return None
        # Every unit belongs to one task here, so a unit's rivals are the units of that task.
        together = (self.classes.to(self.dtype).mT @ self.classes.to(self.dtype)) > 0
        return together[y]
