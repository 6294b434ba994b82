"""Functions that make streams and sources from labelled images: split classes, permute pixels, rotate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.data.source import Source
from lifelong.data.stream import SCENARIOS, Stream, as_tensors
from lifelong.randomness import generator


@dataclass(frozen=True)
class Images:
    """Labelled images, and which of them are training and test images.

    Attributes:
        x: images [N, channels, height, width], uint8 or float.
        y: classes [N], int64, from 0 to K - 1.
        train: indices of the training images, [n], or [S, n] if each seed has its own.
        test: indices of the test images, likewise.
        scale: factor by which integer pixels are multiplied.
        names: globally unique names of the classes, such as `mnist/3`, by which a start and a stream are found to
            share classes; () if no other data has these classes.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    scale: float = 1.0
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        as_tensors(self, ("x", "y", "train", "test"))
        if self.y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
            object.__setattr__(self, "y", self.y.long())
        if self.y.dtype != torch.int64 or self.y.dim() != 1 or len(self.y) != len(self.x):
            raise ValueError(f"y must be the class of each of the {len(self.x)} images, whole numbers from 0 on, got "
                             f"{list(self.y.shape)} of {self.y.dtype}")
        for name in ("train", "test"):
            if getattr(self, name).dtype != torch.int64:
                raise ValueError(f"{name} must be the indices of images, int64, got {getattr(self, name).dtype}"
                                 + ("; a mask has them as mask.nonzero().squeeze(1)"
                                    if getattr(self, name).dtype == torch.bool else ""))

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return int(self.y.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.x.shape[1:])


def split(name: str, seeds: Sequence[int], images: Images, *, tasks: int, classes_per_task: int | None = None,
          scenario: str = "class", order: str = "random", **rest: Any) -> Stream:
    """A stream whose tasks have equally many classes, with no class in two tasks.

    The output unit of a class is its position in the seed's class order (class, task), or its position within its task
    (domain). The output layer has as many units as that needs.

    Args:
        name: name of the stream with its version.
        seeds: the seeds.
        images: the labelled images.
        tasks: number of tasks, at least 1.
        classes_per_task: classes of each task; None divides all classes equally among the tasks.
        scenario: 'class', 'task' or 'domain'.
        order: 'random' draws classes and their order anew for each seed; 'fixed' takes them in numerical order.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: the images have too few classes, or the tasks fewer than the scenario needs.
    """
    check_counts(name, seeds, tasks=tasks, classes_per_task=classes_per_task)
    check_choice(name, order=order, among=("random", "fixed"))
    available = images.n_classes
    size = available // tasks if classes_per_task is None else classes_per_task
    if classes_per_task is None and (size < 1 or available % tasks):
        raise ValueError(f"{name}: {available} classes do not divide into {tasks} tasks; give classes_per_task, or "
                         f"another number of tasks")
    if tasks * size > available:
        raise ValueError(f"{name}: {tasks} tasks of {size} classes need {tasks * size} classes, but there are "
                         f"{available}; use at most {available // size} tasks of {size} classes")

    orders = [torch.arange(available) if order == "fixed" else
              torch.randperm(available, generator=generator(seed, "stream", "classes")) for seed in seeds]
    visits = [list(torch.split(classes[:tasks * size], size)) for classes in orders]
    # The widest task that any seed could draw, so that the width does not depend on which seeds are used together.
    return _partition(name, images, visits, lambda counts: int(counts.topk(size).values.sum()), scenario, rest)


def grouped(name: str, seeds: Sequence[int], images: Images, *, groups: Sequence[Sequence[int]],
            scenario: str = "class", order: str = "random", **rest: Any) -> Stream:
    """A stream with one task per group of classes, for example per alphabet; groups may differ in size.

    Args:
        name, seeds, images: as in `split`.
        groups: the classes of each task, with no class in two groups.
        scenario: 'class' or 'task', or 'domain' if all groups have the same size.
        order: 'random' visits the groups in an order drawn for each seed, 'fixed' in the given order.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: a class is in two groups or does not exist, or the scenario does not apply.
    """
    check_counts(name, seeds, groups=len(groups))
    check_choice(name, order=order, among=("random", "fixed"))
    parts = [torch.as_tensor(list(group), dtype=torch.int64) for group in groups]
    classes = torch.cat(parts)
    if len(set(classes.tolist())) < len(classes) or int(classes.min()) < 0 or int(classes.max()) >= images.n_classes:
        raise ValueError(f"{name}: groups must have each class from 0 to {images.n_classes - 1} at most once")

    orders = [torch.arange(len(parts)) if order == "fixed" else
              torch.randperm(len(parts), generator=generator(seed, "stream", "groups")) for seed in seeds]
    return _partition(name, images, [[parts[i] for i in visits.tolist()] for visits in orders],
                      lambda counts: max(int(counts[part].sum()) for part in parts), scenario, rest)


def stretches(name: str, seeds: Sequence[int], images: Images, *, lengths: Sequence[int], units: int | None = None,
              among: Sequence[int] | None = None, salt: str = "classes", **rest: Any) -> Stream:
    """A stream that presents class after class and is measured whenever `lengths` classes have been learned.

    A task is the stretch between two lengths. One stream serves all lengths, because the first n classes of a random
    order are n random classes in random order.

    Args:
        name, seeds, images: as in `split`.
        lengths: increasing numbers of classes after which the learner is measured.
        units: number of output units, which may exceed the number of classes; None has one unit per class.
        among: the classes from which each seed draws; None draws from all.
        salt: a word that the class order depends on besides the seed.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: `lengths` do not increase, or exceed the number of classes or of units.
    """
    check_counts(name, seeds, units=units, **{f"lengths[{i}]": n for i, n in enumerate(lengths)})
    classes = torch.arange(images.n_classes) if among is None else torch.as_tensor(list(among), dtype=torch.int64)
    if not lengths or any(b <= a for a, b in pairwise(lengths)):
        raise ValueError(f"{name}: lengths must be increasing numbers of classes, for example (10, 50, 100), got "
                         f"{tuple(lengths)}")
    if lengths[-1] > len(classes):
        raise ValueError(f"{name}: lengths ask for {lengths[-1]} classes, but there are {len(classes)}")
    if units is not None and units < lengths[-1]:
        raise ValueError(f"{name}: {lengths[-1]} classes need as many output units, but units is {units}")
    sizes = [b - a for a, b in pairwise([0, *lengths])]
    orders = [classes[torch.randperm(len(classes), generator=generator(seed, "stream", salt))] for seed in seeds]
    visits = [list(order[:lengths[-1]].split(sizes)) for order in orders]
    return _partition(name, images, visits, lambda counts: int(counts.topk(max(sizes)).values.sum()), "class",
                      {"ordered": True, "retention": True} | rest, 0 if units is None else units - lengths[-1])


def permuted(name: str, seeds: Sequence[int], images: Images, *, tasks: int, examples: int | None = None,
             identity_first: bool = False, scenario: str = "domain", **rest: Any) -> Stream:
    """A stream whose tasks show the same images under one random pixel permutation per seed and task.

    Args:
        name, seeds, images: as in `split`.
        tasks: number of tasks, at least 1.
        examples: training images of each task, drawn for each seed and task; None uses all.
        identity_first: whether the first task shows the images unpermuted.
        scenario: 'domain' (all tasks share one output unit per class), or 'class' or 'task' (each task has its own
            output units).
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: `examples` exceeds the number of training images.
    """
    check_counts(name, seeds, tasks=tasks)
    pixels = images.x[0].numel()

    tables = [torch.randperm(pixels, generator=generator(seed, "stream", "permutation", task))
              for seed in seeds for task in range(tasks)]
    warp = torch.stack(tables).view(len(seeds), tasks, pixels)
    if identity_first:
        warp[:, 0] = torch.arange(pixels)
    return warped(name, seeds, images, warp, examples=examples, scenario=scenario, **rest)


def rotated(name: str, seeds: Sequence[int], images: Images, *, tasks: int, angles: str = "bins",
            examples: int | None = None, scenario: str = "domain", **rest: Any) -> Stream:
    """A stream whose tasks show the same images under one rotation each, as PIL's nearest-neighbour `Image.rotate`.

    Args:
        name, seeds, images: as in `split`.
        tasks: number of tasks, at least 1.
        angles: 'bins' draws task t's angle from the t-th of T equal bins of [0, 180) degrees (Lopez-Paz & Ranzato
            2017, arXiv:1706.08840), 'any' from all of [0, 180) (Buzzega et al. 2020, arXiv:2004.07211).
        examples, scenario, rest: as in `permuted`.
    """
    check_counts(name, seeds, tasks=tasks)
    check_choice(name, angles=angles, among=("bins", "any"))
    draws = torch.stack([torch.rand(tasks, generator=generator(seed, "stream", "angles"), dtype=torch.float64)
                         for seed in seeds])
    degrees = 180 * draws if angles == "any" else 180 * (draws + torch.arange(tasks)) / tasks
    return warped(name, seeds, images, rotation(degrees, images.shape), examples=examples, scenario=scenario,
                  content=_angles(images, degrees), **rest)


def _angles(images: Images, degrees: Tensor) -> frozenset[str]:
    return frozenset(f"{name.split('/')[0]} turned by {angle:.6f}" for name in images.names[:1]
                     for angle in degrees.flatten().tolist())


def warped(name: str, seeds: Sequence[int], images: Images, warp: Tensor, *, examples: int | None = None,
           scenario: str = "domain", **rest: Any) -> Stream:
    """A stream whose tasks show the same images under one rearrangement of pixels each.

    Args:
        name, seeds, images: as in `split`.
        warp: [S, T, D] int64: for each seed and task, the source pixel of each of the D pixels; D is a blank pixel.
        examples, scenario, rest: as in `permuted`.

    Raises:
        ValueError: `examples` exceeds the number of training images.
    """
    check_counts(name, seeds, examples=examples)
    check_choice(name, scenario=scenario, among=SCENARIOS)
    n_seeds, tasks, n_classes = len(seeds), warp.shape[1], images.n_classes
    available = images.train.shape[-1]
    if examples is not None and examples > available:
        raise ValueError(f"{name}: examples is {examples}, but there are {available} training images; leave examples "
                         f"out to use all")
    variant = (torch.arange(tasks) * len(images.y)).view(1, -1, 1)
    train, test = (rows.view(-1, 1, rows.shape[-1]) for rows in (images.train, images.test))
    if examples is not None:
        picks = [torch.randperm(available, generator=generator(seed, "stream", "examples", task))[:examples]
                 for seed in seeds for task in range(tasks)]
        train = train.expand(n_seeds, tasks, -1).gather(2, torch.stack(picks).view(n_seeds, tasks, -1))
    label = None
    classes = torch.ones(n_seeds, tasks, n_classes, dtype=torch.bool)
    if scenario != "domain":
        label = torch.arange(tasks * n_classes).view(tasks, n_classes).expand(n_seeds, -1, -1)
        classes = torch.eye(tasks, dtype=torch.bool).repeat_interleave(n_classes, 1).expand(n_seeds, -1, -1)
    flat = images.x.flatten(1)
    return Stream(
        # The last pixel is the blank one, which tables take for pixels from outside the image.
        name, torch.cat([flat, flat.new_zeros(len(flat), 1)], 1), images.y,
        (train + variant).expand(n_seeds, -1, -1), (test + variant).expand(n_seeds, -1, -1), classes, images.shape,
        scenario, scale=images.scale, warp=warp, label=label, **rest)


def source(name: str, images: Images, *, turned: bool = False, **rest: Any) -> Source:
    """A source of one domain: the training images, equally many of every class.

    Args:
        name: name of the source with its version.
        images: the labelled images; a class has as many examples as the smallest.
        turned: whether each class rotated by 90, 180 and 270 degrees is added as a further class.
        rest: `options` of the `Source`.
    """
    n_classes = images.n_classes
    rows, x, warp, label = _by_class(images, images.train), images.x, None, None
    if turned:
        warp = rotation(torch.tensor([0.0, 90.0, 180.0, 270.0]), images.shape)
        label = torch.arange(4 * n_classes).view(4, n_classes)
        rows = torch.cat([rows + variant * len(images.y) for variant in range(4)])
        flat = images.x.flatten(1)
        x = torch.cat([flat, flat.new_zeros(len(flat), 1)], 1)
    return Source(name, x, images.y, rows.unsqueeze(0), images.shape, images.scale, warp, label,
                  frozenset(images.names), **rest)


def domains(name: str, images: Images, warp: Tensor, *, content: frozenset[str] = frozenset(), **rest: Any) -> Source:
    """A source of G domains: the training images under each of G rearrangements of pixels.

    Args:
        name: name of the source with its version.
        images: the labelled images.
        warp: [G, D] int64: for each domain the source pixel of each pixel, as in `warped`.
        content: further names of what it shows, besides the names of the classes.
        rest: `options` of the `Source`.
    """
    rows = _by_class(images, images.train)
    variant = (torch.arange(len(warp)) * len(images.y)).view(-1, 1, 1)
    flat = images.x.flatten(1)
    return Source(name, torch.cat([flat, flat.new_zeros(len(flat), 1)], 1), images.y, rows + variant, images.shape,
                  images.scale, warp, content=frozenset(images.names) | content, **rest)


def rotations(name: str, images: Images, *, count: int, **rest: Any) -> Source:
    """A source of `count` domains, each under a random rotation of [0, 180) degrees that no stream uses."""
    check_counts(name, [0], domains=count)
    degrees = 180 * torch.rand(count, generator=generator("source", "angles"), dtype=torch.float64)
    return domains(name, images, rotation(degrees, images.shape), content=_angles(images, degrees), **rest)


def permutations(name: str, images: Images, *, count: int, **rest: Any) -> Source:
    """A source of `count` domains, each under a random pixel permutation that no stream uses."""
    check_counts(name, [0], domains=count)
    pixels = images.x[0].numel()
    return domains(name, images, torch.stack([torch.randperm(pixels, generator=generator("source", "permutation", i))
                                              for i in range(count)]), **rest)


def _by_class(images: Images, rows: Tensor) -> Tensor:
    """Rows [K, n]: the first n of `rows` of each class, where n is the size of the smallest class."""
    y, order = images.y[rows].sort(stable=True)
    sizes = torch.bincount(y, minlength=images.n_classes)
    first = sizes.cumsum(0) - sizes
    return rows[order[first.unsqueeze(1) + torch.arange(int(sizes.min()))]]


def rotation(degrees: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The source of each of D pixels in an image of `shape` rotated by `degrees` [...]: [..., D]; D is the blank."""
    from PIL import Image

    height, width = shape[-2:]
    area, channels = height * width, int(np.prod(shape[:-2]))
    numbers = Image.fromarray(np.arange(area, dtype=np.int32).reshape(height, width))
    plane = torch.stack([torch.from_numpy(np.array(numbers.rotate(angle, fillcolor=area), dtype=np.int64)).flatten()
                         for angle in degrees.flatten().tolist()]).unsqueeze(1)
    table = plane + area * torch.arange(channels).view(-1, 1)
    return table.where(plane < area, channels * area).flatten(1).view(*degrees.shape, -1)


def check_counts(name: str, seeds: Sequence[int], **counts: int | None) -> None:
    """Raises ValueError unless there are seeds and every count that is not None is a whole number of 1 or more."""
    if len(seeds) == 0:
        raise ValueError(f"{name}: seeds needs at least one seed, for example [0]")
    for what, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(f"{name}: {what} must be a whole number of 1 or more, got {count!r}")


def check_choice(name: str, *, among: Sequence[object], **choice: object) -> None:
    """Raises ValueError unless the value of the keyword argument is one of `among`."""
    for what, value in choice.items():
        if value not in among:
            raise ValueError(f"{name}: {what} must be one of {', '.join(map(repr, among))}; got {value!r}")


def _partition(name: str, images: Images, visits: Sequence[Sequence[Tensor]], widest: Callable[[Tensor], int],
               scenario: str, rest: Mapping[str, Any], spare: int = 0) -> Stream:
    """The stream whose task t has the classes `visits[s][t]` for seed s; `widest`: rows of a task from class counts."""
    check_choice(name, scenario=scenario, among=SCENARIOS)
    sizes = {len(part) for part in visits[0]}
    if scenario == "domain" and len(sizes) > 1:
        raise ValueError(f"{name}: the domain scenario needs equally many classes in every task, but there are tasks "
                         f"of {min(sizes)} and of {max(sizes)} classes; use the scenario 'class' or 'task'")
    if scenario != "class" and min(sizes) < 2:
        raise ValueError(f"{name}: the {scenario} scenario needs 2 or more classes in every task, because a single "
                         f"class leaves nothing to classify; use the scenario 'class', or more classes per task")
    n_seeds, tasks, n_classes = len(visits), len(visits[0]), images.n_classes
    units = spare + (max(sizes) if scenario == "domain" else sum(len(part) for part in visits[0]))
    label = torch.zeros(n_seeds, 1, n_classes, dtype=torch.int64)
    classes = torch.zeros(n_seeds, tasks, units, dtype=torch.bool)
    home = torch.full((n_seeds, n_classes), -1)
    for s, parts in enumerate(visits):
        first = 0
        for t, part in enumerate(parts):
            label[s, 0, part] = first + torch.arange(len(part))
            classes[s, t, first:first + len(part)] = True
            home[s, part] = t
            first += 0 if scenario == "domain" else len(part)
    content = frozenset(images.names[c] for c in (home >= 0).any(0).nonzero().flatten().tolist()) \
        if images.names else frozenset()
    renamed = not bool((label == torch.arange(n_classes)).all())
    order = label[:, 0] if rest.get("ordered") else None
    train, test = (_rows(home, images.y, rows, tasks, widest, order) for rows in (images.train, images.test))
    return Stream(name, images.x, images.y, train, test, classes, images.shape, scenario, scale=images.scale,
                  label=label if renamed else None, content=content, spare=spare, **rest)


def _rows(home: Tensor, y: Tensor, examples: Tensor, tasks: int, widest: Callable[[Tensor], int],
          order: Tensor | None = None) -> Tensor:
    """The rows of each task, [S, T, width], padded with -1.

    Args:
        home: [S, K], the task of each class.
        y: class of each example.
        examples: [n] or [S, n].
        tasks: T.
        widest: (examples per class [K]) -> width.
        order: [S, K], the position of each class, by which the rows of a task are sorted; None keeps their order.
    """
    examples = examples.expand(len(home), -1)
    counts = torch.stack([torch.bincount(y[indices], minlength=home.shape[1]) for indices in examples])
    rows = torch.full((len(home), tasks, widest(counts.max(0).values)), -1)
    for s, indices in enumerate(examples):
        task = home[s][y[indices]]
        for t in range(tasks):
            of_task = indices[task == t]
            if order is not None:
                of_task = of_task[order[s][y[of_task]].argsort(stable=True)]
            rows[s, t, :len(of_task)] = of_task
    return rows
