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
    """Every example once, on the device, as one lane (one seed) sees it.

    A row is `variant * N + example`: the variant says which of the lane's transforms applies, so a rehearsed row of
    an old task comes back as that task saw it, and no transformed copy is stored.

    Attributes:
        x: examples [N, *shape], or [N, D + 1] where `warp` is given (D pixels and one blank).
        y: target of each example: its class [N], int64, or numbers [N, K].
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
        problem: what a right answer is.
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
        """Tasks of the stream, T."""
        return self.classes.shape[-2]

    @property
    def n_classes(self) -> int:
        """Output units of a learner on this stream, C."""
        return self.classes.shape[-1]

    def lane(self, tensors: Mapping[str, Any]) -> Pool:
        """The same examples with one lane's own `classes`, `warp` and `label`."""
        lane = object.__new__(Pool)  # `replace` would take longer than a hook that is called with the pool
        lane.__dict__.update(self.__dict__, **tensors)
        return lane

    def fetch(self, rows: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples [B, *shape] and their targets [B] or [B, K] for `rows` [B]; a pad (-1) gives an arbitrary example.

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
        example, variant, n = rows, rows, self.y.shape[0]
        if self.warp is not None or self.label is not None:
            example, variant = rows % n, rows // n
        if x is None:
            x = gathered(self.x, example) if self.host else self.x.index_select(0, example)
        y = self.y.index_select(0, example)
        if self.warp is not None:
            # Two plain gathers: indexing by both at once takes three to five times as long. In blocks, for the int64
            # positions of 512 images are as much as a processor's cache holds.
            if x.shape[0] <= 512:
                x = x.gather(1, self.warp.index_select(0, variant))
            else:
                x = torch.cat([part.gather(1, self.warp.index_select(0, v)) for part, v in
                               zip(x.split(512), variant.split(512), strict=True)])
            x = x.view(*rows.shape, *self.shape)
        return x, y if self.label is None else self.label[variant, y]

    def real(self, x: Tensor) -> Tensor:
        """Stored examples in the precision of training, integers scaled, or every channel normalised; as they are
        where the problem wants that."""
        if not self.problem.scaled:
            return x
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
