"""Sources of pretraining data: examples grouped by class, and the sampler that draws episodes from them."""

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
    """The data that a start is learned from: examples grouped by class, in one domain or in several.

    All domains of a source have the same classes.

    Attributes:
        name: name with version, for example `omniglot-v1`.
        x: examples [N, *shape], or [N, D + 1] with `warp`, as in `Pool`.
        y: class of each example [N], int64.
        rows: [G, K, n] rows of the pool: n examples of each of K classes in each of G domains.
        shape, scale, warp, label: as in `Pool`.
        content: names of the classes that it shows; a start learned on them is refused on a stream that tests on any
            of them. Empty if they have no names.
        options: the arguments that made it, as JSON values.
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
        """Number of classes, K."""
        return self.rows.shape[1]

    @property
    def domains(self) -> int:
        """Number of domains, G."""
        return self.rows.shape[0]

    def sampler(self, g: torch.Generator, device: torch.device | str = "cpu",
                dtype: torch.dtype = torch.float32) -> Sampler:
        """A sampler of this source.

        Args:
            g: the generator of its random numbers, on the CPU.
            device: where examples are kept and returned.
            dtype: the floating type of returned examples.
        """
        tables = {name: value.to(device) for name, value in (("warp", self.warp), ("label", self.label))
                  if value is not None}
        classes = torch.ones(1, self.n_classes, dtype=torch.bool, device=device)
        pool = Pool(self.x.to(device), self.y.to(device), self.shape, classes, scale=self.scale, dtype=dtype)
        return Sampler(self, pool.lane(tables), g)


@dataclass(frozen=True)
class Sampler:
    """Draws random classes and examples from a source.

    Attributes:
        source: the source.
        pool: its examples, on the device.
        g: the generator of random numbers, on the CPU.
    """

    source: Source
    pool: Pool
    g: torch.Generator

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The examples [*rows.shape, *shape] and output units [*rows.shape] of `rows`, a tensor of any shape."""
        x, y = self.pool.fetch(rows.flatten().to(self.pool.y.device))
        return x.view(*rows.shape, *x.shape[1:]), y.view(rows.shape)

    def classes(self, count: int, examples: int) -> Tensor:
        """Rows [count, examples]: `examples` different examples of each of `count` random classes of one domain.

        Classes, and the examples of each class, are in random order.

        Raises:
            ValueError: the source has fewer classes, or fewer examples per class.
        """
        rows = self.source.rows
        domain = int(torch.randint(len(rows), (), generator=self.g))
        if count > rows.shape[1]:
            raise ValueError(f"{self.source.name} has {rows.shape[1]} classes, fewer than the {count} requested")
        chosen = rows[domain, torch.randperm(rows.shape[1], generator=self.g)[:count]]
        return self.examples(chosen, examples)

    def task(self, way: int, examples: int) -> Tensor:
        """Rows [C, examples] of a few-shot task; the output unit of a class is its position in the first axis.

        From a source of one domain the task has C = `way` random classes in random order. From a source of several
        domains it has all classes of a random domain in their fixed order, because their output units are fixed.

        Raises:
            ValueError: the source has fewer classes, or fewer examples per class.
        """
        if self.source.domains == 1:
            return self.classes(way, examples)
        domain = int(torch.randint(self.source.domains, (), generator=self.g))
        return self.examples(self.source.rows[domain], examples)

    def episode(self, way: int, shots: int, queries: int) -> Episode:
        """A few-shot task of C classes as tensors: support examples, then query examples.

        Returns:
            `x`: [C * shots + C * queries, *shape], the support examples class by class, then the query examples class
            by class; `y`: [C * shots], the units of the support examples; `query_y`: [C * queries], those of the
            query examples. C is `way`, or all classes if the source has several domains.

        Raises:
            ValueError: the source has fewer classes, or fewer examples per class.
        """
        x, _ = self.fetch(self.task(way, shots + queries))
        units = torch.arange(len(x), device=x.device)
        return {"x": torch.cat([x[:, :shots].flatten(0, 1), x[:, shots:].flatten(0, 1)]),
                "y": units.repeat_interleave(shots), "query_y": units.repeat_interleave(queries)}

    def examples(self, rows: Tensor, count: int) -> Tensor:
        """`count` different random rows of each class, [C, count], from the classes' `rows` [C, n].

        Raises:
            ValueError: a class has fewer than `count` examples.
        """
        if count > rows.shape[1]:
            raise ValueError(f"{self.source.name} has {rows.shape[1]} examples per class, fewer than the {count} "
                             "requested")
        order = torch.rand(rows.shape, generator=self.g).argsort(1)[:, :count]
        return rows.gather(1, order)

    def any_rows(self, count: int, rows: Tensor | None = None) -> Tensor:
        """`count` different random rows [count] out of `rows`, or out of the whole source.

        If there are fewer than `count` rows, they are drawn with replacement.
        """
        rows = (self.source.rows if rows is None else rows).flatten()
        if count > len(rows):
            return rows[torch.randint(len(rows), (count,), generator=self.g)]
        if count**2 > len(rows):
            return rows[torch.randperm(len(rows), generator=self.g)[:count]]
        # Repetitions are rare here, so drawing again is faster than a permutation of, say, 19,280 rows.
        picks = torch.randint(len(rows), (count,), generator=self.g)
        while len(set(picks.tolist())) < count:
            picks = torch.randint(len(rows), (count,), generator=self.g)
        return rows[picks]
