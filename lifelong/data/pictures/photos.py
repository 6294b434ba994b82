"""Photographs by class, decoded once from whatever layout they are in, and made into streams and sources."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.data import build
from lifelong.data.files import Plan, filled, find, folder
from lifelong.data.pictures import workers
from lifelong.data.pictures.decoding import Job
from lifelong.data.pictures.layouts import Collection, classes, looks, walk
from lifelong.data.source import Source
from lifelong.randomness import generator


@dataclass(frozen=True)
class Photos:
    """Photographs by class.

    Attributes:
        x: [K, n, 3, side, side] uint8, mapped from the cache.
        names: of the K classes, the same wherever they occur.
        parts: the classes of each part, by place; {} where the layout does not tell.
    """

    x: Tensor
    names: Sequence[str]
    parts: Mapping[str, range]

    def part(self, name: str, part: str) -> Photos:
        """The classes of one part alone.

        Raises:
            ValueError: where there is no such part, or the layout numbers its classes and does not tell the parts.
        """
        if not self.parts:
            raise ValueError(f"{name}: classes are only numbered here, in one file, which does not tell which of them "
                             f"are for meta-training; use a layout with names or with a file for each part")
        build.check_choice(name, part=part, among=tuple(self.parts))
        own = self.parts[part]
        return Photos(self.x[own.start:own.stop], self.names[own.start:own.stop], {part: range(len(own))})

    def images(self, name: str, seeds: Sequence[int], *, train: int, test: int,
               examples: str = "fixed") -> build.Images:
        """All of them, `train` of each class to train on and `test` others to test on.

        Args:
            examples: 'fixed' takes a class's first ones to train and its last ones to test on, 'random' draws which,
                for each seed and class.

        Raises:
            ValueError: where a class has fewer.
        """
        build.check_counts(name, seeds, train=train, test=test)
        build.check_choice(name, examples=examples, among=("fixed", "random"))
        n_classes, there = self.x.shape[:2]
        if train + test > there:
            raise ValueError(f"{name}: {train} images to train and {test} to test on are asked for, but a class has "
                             f"{there}")
        own = torch.arange(there).expand(1, n_classes, -1)
        if examples == "random":
            own = torch.stack([torch.rand(n_classes, there, generator=generator(seed, "stream", "examples")).argsort(1)
                               for seed in seeds])
        rows = torch.arange(n_classes).unsqueeze(1) * there + own
        return build.Images(self.x.flatten(0, 1), torch.arange(n_classes).repeat_interleave(there),
                            rows[..., :train].flatten(1), rows[..., there - test:].flatten(1), 1 / 255, self.names)

    def source(self, name: str, options: Mapping[str, Any]) -> Source:
        """All of them, to learn a start from."""
        n_classes, there = self.x.shape[:2]
        rows = torch.arange(n_classes * there)
        return build.source(name, build.Images(self.x.flatten(0, 1), rows // there, rows, rows[:0], 1 / 255,
                                               self.names), options=options)


def load(what: Collection, data: str | Path | None) -> Photos:
    """The photographs of a collection, from the cache or else from where the user has them.

    Raises:
        FileNotFoundError: where they are not in the data folder.
        ValueError: where what is there is damaged, incomplete or something else.
        OSError: where the cache has no room for them.
    """
    here = ["."] if looks(folder(data)) else []
    root = find(what.name, [*(f"{place}{kind}" for place in what.places for kind in ("", ".zip")), *here], data,
                source=what.source)
    files = [str(root)] if root.is_file() else list(walk(root))
    about = hashlib.sha256(repr((what, 1)).encode())
    for path in files:
        known = os.stat(path)
        about.update(f"{path}\0{known.st_size}\0{known.st_mtime_ns}\n".encode())
    array, found = filled(f"{what.key}-{what.side}", about.hexdigest(), lambda: _plan(what, root, files))
    names, begin, parts = found["classes"], 0, {}
    for part, count in found["parts"].items():
        parts[part], begin = range(begin, begin + count), begin + count
    return Photos(torch.from_numpy(array), names, parts)


def _plan(what: Collection, root: Path, files: Sequence[str]) -> Plan:
    """What is to be decoded, once all of it is known to be there."""
    found = classes(what, root, files)
    parts = {part: sum(own == part for own, _, _ in found) for part in what.parts}
    known = all(part for part, _, _ in found)
    jobs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for c, (_, _, refs) in enumerate(found):
        for i, (place, kind, at) in enumerate(refs[:what.images]):
            row = c * what.images + i
            # A table is read once for all of its pictures.
            job = jobs.setdefault((place, kind, row if kind == "picture" else 0),
                                  {"place": place, "kind": kind, "at": [], "rows": []})
            job["at"].append(at)
            job["rows"].append(row)
    shape = (len(found), what.images, 3, what.side, what.side)
    about = {"classes": [name for _, name, _ in found], "parts": parts if known else {}}
    return Plan(shape, about, partial(_fill, what, shape, list(jobs.values())))


def _fill(what: Collection, shape: tuple[int, ...], jobs: Sequence[Job], file: Path, offset: int) -> None:
    flat = (shape[0] * shape[1], *shape[2:])
    workers.decode(f"decoding {what.name}", file, offset, flat, jobs, what.resize)
