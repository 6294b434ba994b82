"""Photographs grouped by class: decoded once from any layout into the cache, and turned into streams and sources."""

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
from lifelong.data.pictures.layouts import Collection, classes, is_collection, walk
from lifelong.data.source import Source
from lifelong.randomness import generator


@dataclass(frozen=True)
class Photos:
    """Photographs grouped by class.

    Attributes:
        x: images [K, n, 3, side, side] uint8, memory-mapped from the cache.
        names: globally unique names of the K classes.
        parts: the range of class indices of each part; {} if the layout does not define parts.
    """

    x: Tensor
    names: Sequence[str]
    parts: Mapping[str, range]

    def part(self, name: str, part: str) -> Photos:
        """The classes of one part.

        Args:
            name: name of the stream or source, for errors.
            part: name of the part.

        Raises:
            ValueError: there is no such part, or the layout does not define parts.
        """
        if not self.parts:
            raise ValueError(f"{name}: the classes are only numbered, in a single file, so it is unknown which of them "
                             f"are for meta-training; use a layout with class names, or with one file per part")
        build.check_choice(name, part=part, among=tuple(self.parts))
        classes = self.parts[part]
        return Photos(self.x[classes.start:classes.stop], self.names[classes.start:classes.stop],
                      {part: range(len(classes))})

    def images(self, name: str, seeds: Sequence[int], *, train: int, test: int,
               examples: str = "fixed") -> build.Images:
        """Labelled images with `train` training and `test` test images of each class.

        Args:
            name: name of the stream, for errors.
            seeds: the seeds.
            train, test: training and test images of each class.
            examples: 'fixed' trains on the first and tests on the last images of a class; 'random' draws them for each
                seed and class.

        Raises:
            ValueError: a class has fewer than `train + test` images.
        """
        build.check_counts(name, seeds, train=train, test=test)
        build.check_choice(name, examples=examples, among=("fixed", "random"))
        n_classes, available = self.x.shape[:2]
        if train + test > available:
            raise ValueError(f"{name}: train={train} and test={test} need {train + test} images of each class, but "
                             f"there are {available}")
        order = torch.arange(available).expand(1, n_classes, -1)
        if examples == "random":
            order = torch.stack([torch.rand(n_classes, available,
                                            generator=generator(seed, "stream", "examples")).argsort(1)
                                 for seed in seeds])
        rows = torch.arange(n_classes).unsqueeze(1) * available + order
        return build.Images(self.x.flatten(0, 1), torch.arange(n_classes).repeat_interleave(available),
                            rows[..., :train].flatten(1), rows[..., available - test:].flatten(1), 1 / 255, self.names)

    def source(self, name: str, options: Mapping[str, Any]) -> Source:
        """A source with all photographs."""
        n_classes, n = self.x.shape[:2]
        rows = torch.arange(n_classes * n)
        return build.source(name, build.Images(self.x.flatten(0, 1), rows // n, rows, rows[:0], 1 / 255, self.names),
                            options=options)


def load(what: Collection, data: str | Path | None) -> Photos:
    """The photographs of a collection, decoded into the cache when they are first used.

    Args:
        what: the collection.
        data: the user's data folder; None uses `$LIFELONG_DATA`, or else the user's cache.

    Raises:
        FileNotFoundError: the collection is not in the data folder.
        ValueError: the files are damaged, incomplete or not of this collection.
        OSError: the cache has no space for it.
    """
    itself = ["."] if is_collection(folder(data)) else []
    root = find(what.name, [*(f"{place}{kind}" for place in what.places for kind in ("", ".zip")), *itself], data,
                source=what.source)
    files = [str(root)] if root.is_file() else list(walk(root))
    content = hashlib.sha256(repr((what, 1)).encode())
    for path in files:
        stat = os.stat(path)
        content.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    array, found = filled(f"{what.key}-{what.side}", content.hexdigest(), lambda: _plan(what, root, files))
    names, begin, parts = found["classes"], 0, {}
    for part, count in found["parts"].items():
        parts[part], begin = range(begin, begin + count), begin + count
    return Photos(torch.from_numpy(array), names, parts)


def _plan(what: Collection, root: Path, files: Sequence[str]) -> Plan:
    """The array to decode and the jobs that fill it, after a check that all pictures are present."""
    found = classes(what, root, files)
    parts = {part: sum(of_class == part for of_class, _, _ in found) for part in what.parts}
    known = all(part for part, _, _ in found)
    jobs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for c, (_, _, refs) in enumerate(found):
        for i, (place, kind, at) in enumerate(refs[:what.images]):
            row = c * what.images + i
            # A pickle or Parquet file is read once for all of its pictures.
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
