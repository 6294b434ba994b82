"""What starts are learned from: examples by class, and how episodes are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lifelong.data.pool import Pool

Episode = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """What a start is learned from: examples by class, in one domain or in several that share their classes.

    Attributes:
        name: with its version.
        x, y: examples [N, *shape] (or [N, D + 1] with `warp`) and their classes [N], as a `Pool` has them.
        rows: [G, K, n] rows of the pool: n examples of each of K classes, in each of G domains.
        shape, scale, warp [V, D], label [V, K]: see `Pool`.
        content: names of what it shows; a stream that tests on any of these is refused.
        options: the arguments that made it, JSON values.
    """

    name: str
    x: Tensor
    y: Tensor
    rows: Tensor
    shape: tuple[int, ...]
    scale: float = 1.0
    warp: Tensor | None = None
    label: Tensor | None = None
    content: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Output units that tell all of its classes apart, K."""
        return self.rows.shape[1]

    @property
    def domains(self) -> int:
        """Domains, G."""
        return self.rows.shape[0]

    def sampler(self, g: torch.Generator, device: torch.device | str = "cpu",
                dtype: torch.dtype = torch.float32) -> Sampler:
        """What draws from it with the random numbers of `g`."""
        own = {name: value.to(device) for name, value in (("warp", self.warp), ("label", self.label))
               if value is not None}
        classes = torch.ones(1, self.n_classes, dtype=torch.bool, device=device)
        pool = Pool(self.x.to(device), self.y.to(device), self.shape, classes, scale=self.scale, dtype=dtype)
        return Sampler(self, pool.lane(own), g)


@dataclass(frozen=True)
class Sampler:
    """Draws classes and examples of a source.

    Attributes:
        source: what is drawn from.
        pool: its examples, on the device.
        g: random numbers, on the CPU.
    """

    source: Source
    pool: Pool
    g: torch.Generator

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Examples [*rows.shape, *shape] and their output units, of `rows` of any shape."""
        x, y = self.pool.fetch(rows.flatten().to(self.pool.y.device))
        return x.view(*rows.shape, *x.shape[1:]), y.view(rows.shape)

    def way(self, count: int, each: int) -> Tensor:
        """Rows [count, each]: of `count` classes of one domain, `each` different examples, all in random order.

        Raises:
            ValueError: where the source has fewer classes, or fewer examples of a class.
        """
        rows = self.source.rows
        domain = int(torch.randint(len(rows), (), generator=self.g))
        if count > rows.shape[1]:
            raise ValueError(f"{count} classes are asked for, but {self.source.name} has {rows.shape[1]}")
        chosen = rows[domain, torch.randperm(rows.shape[1], generator=self.g)[:count]]
        return self.some(chosen, each)

    def task(self, way: int, each: int) -> Tensor:
        """Rows [K, each] of a few-shot task, and a row's place is its unit: `way` classes in random order, or, of a
        source of several domains, all classes of one in their own order, for there they have units that stay.

        Raises:
            ValueError: where the source has fewer classes, or fewer examples of a class.
        """
        if self.source.domains == 1:
            return self.way(way, each)
        return self.some(self.source.rows[int(torch.randint(self.source.domains, (), generator=self.g))], each)

    def episode(self, way: int, shots: int, queries: int) -> Episode:
        """A few-shot task: `x`, the shots of all classes and then the queries; their units, `y` and `asked`."""
        x, _ = self.fetch(self.task(way, shots + queries))
        units = torch.arange(len(x), device=x.device)
        return {"x": torch.cat([x[:, :shots].flatten(0, 1), x[:, shots:].flatten(0, 1)]),
                "y": units.repeat_interleave(shots), "asked": units.repeat_interleave(queries)}

    def some(self, rows: Tensor, each: int) -> Tensor:
        """Of `rows` [C, n] of C classes, `each` different ones of every class in random order, [C, each].

        Raises:
            ValueError: where a class has fewer.
        """
        if each > rows.shape[1]:
            raise ValueError(f"{each} images of a class are asked for, but {self.source.name} has {rows.shape[1]}")
        order = torch.rand(rows.shape, generator=self.g).argsort(1)[:, :each]
        return rows.gather(1, order)

    def any(self, count: int, among: Tensor | None = None) -> Tensor:
        """`count` different rows of `among`, or of all there are (or with repetitions where there are fewer)."""
        every = (self.source.rows if among is None else among).flatten()
        if count > len(every):
            return every[torch.randint(len(every), (count,), generator=self.g)]
        if count**2 > len(every):
            return every[torch.randperm(len(every), generator=self.g)[:count]]
        # A permutation of 19,280 takes longer than drawing again in the rare case of a repetition.
        picks = torch.randint(len(every), (count,), generator=self.g)
        while len(set(picks.tolist())) < count:
            picks = torch.randint(len(every), (count,), generator=self.g)
        return every[picks]
