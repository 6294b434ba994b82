"""Ways to make a stream from labelled images: split their classes, permute their pixels, rotate them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong.data.source import Source
from lifelong.data.stream import SCENARIOS, Stream
from lifelong.randomness import generator


@dataclass(frozen=True)
class Images:
    """Labelled images, and which of them are for training and which for testing.

    Attributes:
        x: [N, channels, height, width], uint8 or float.
        y: [N] int64, classes 0..K-1.
        train: examples to train on, [n], or [S, n] where each seed has its own.
        test: examples to test on, likewise.
        scale: what integer pixels are multiplied by.
        names: of the classes, the same wherever they occur, as `mnist/3`; () where nothing else has them.
    """

    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    scale: float = 1.0
    names: Sequence[str] = ()

    @property
    def n_classes(self) -> int:
        """Classes, K."""
        return int(self.y.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.x.shape[1:])


def split(name: str, seeds: Sequence[int], images: Images, *, tasks: int, classes_per_task: int | None = None,
          scenario: str = "class", order: str = "random", **rest: Any) -> Stream:
    """Tasks of equally many classes each, no class in two tasks.

    A class's output unit is its place in the stream's order (class, task), or its place within its task (domain), so
    the output layer has as many units as classes occur.

    Args:
        tasks: tasks, at least 1.
        classes_per_task: classes of each task; None divides all there are.
        scenario: 'class', 'task' or 'domain'.
        order: 'random' draws classes and their order anew for each seed; 'fixed' takes them as numbered.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: where more classes are asked for than there are, or fewer than the scenario needs.
    """
    check_counts(name, seeds, tasks=tasks, classes_per_task=classes_per_task)
    check_choice(name, order=order, among=("random", "fixed"))
    there = images.n_classes
    each = there // tasks if classes_per_task is None else classes_per_task
    if classes_per_task is None and (each < 1 or there % tasks):
        raise ValueError(f"{name}: {there} classes do not divide into {tasks} tasks; give classes_per_task, or another "
                         f"number of tasks")
    if tasks * each > there:
        raise ValueError(f"{name}: {tasks} tasks of {each} classes need {tasks * each} classes, but there are {there}; "
                         f"ask for at most {there // each} tasks of {each}")

    orders = [torch.arange(there) if order == "fixed" else
              torch.randperm(there, generator=generator(seed, "stream", "classes")) for seed in seeds]
    visits = [list(torch.split(drawn[:tasks * each], each)) for drawn in orders]
    # The widest task any seed could draw, so that the width does not depend on which seeds are asked for together.
    return _partition(name, images, visits, lambda counts: int(counts.topk(each).values.sum()), scenario, rest)


def grouped(name: str, seeds: Sequence[int], images: Images, *, groups: Sequence[Sequence[int]],
            scenario: str = "class", order: str = "random", **rest: Any) -> Stream:
    """A task for each group of classes, for example for each alphabet; groups may differ in size.

    Args:
        groups: the classes of each task, no class in two groups.
        scenario: 'class' or 'task'; 'domain' only where all groups are of one size.
        order: 'random' visits the groups in an order drawn for each seed, 'fixed' as given.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: where a class stands in two groups or does not exist, or the scenario does not apply.
    """
    check_counts(name, seeds, groups=len(groups))
    check_choice(name, order=order, among=("random", "fixed"))
    parts = [torch.as_tensor(list(group), dtype=torch.int64) for group in groups]
    every = torch.cat(parts)
    if len(set(every.tolist())) < len(every) or int(every.min()) < 0 or int(every.max()) >= images.n_classes:
        raise ValueError(f"{name}: groups must hold each class from 0 to {images.n_classes - 1} at most once")

    orders = [torch.arange(len(parts)) if order == "fixed" else
              torch.randperm(len(parts), generator=generator(seed, "stream", "groups")) for seed in seeds]
    return _partition(name, images, [[parts[i] for i in drawn.tolist()] for drawn in orders],
                      lambda counts: max(int(counts[part].sum()) for part in parts), scenario, rest)


def stretches(name: str, seeds: Sequence[int], images: Images, *, lengths: Sequence[int], units: int | None = None,
              among: Sequence[int] | None = None, salt: str = "classes", **rest: Any) -> Stream:
    """Class after class, measured where `lengths` classes have been learned: a task is a stretch between two lengths.

    One stream has all lengths, for the first n classes of a random order are a random order of n classes.

    Args:
        lengths: classes after which is measured, growing.
        units: output units, also those that never occur; None: as many as classes are learned.
        among: classes that those of a seed are drawn from; None: all.
        salt: another one draws other classes in another order.
        rest: `boundaries`, `defaults` and `options` of the `Stream`.

    Raises:
        ValueError: where lengths do not grow, or more classes are asked for than there are, or than units.
    """
    check_counts(name, seeds, units=units, **{f"lengths[{i}]": n for i, n in enumerate(lengths)})
    drawn = torch.arange(images.n_classes) if among is None else torch.as_tensor(list(among), dtype=torch.int64)
    if not lengths or any(b <= a for a, b in pairwise(lengths)):
        raise ValueError(f"{name}: lengths must be growing numbers of classes, for example (10, 50, 100), got "
                         f"{tuple(lengths)}")
    if lengths[-1] > len(drawn):
        raise ValueError(f"{name}: {lengths[-1]} classes are asked for, but there are {len(drawn)}")
    if units is not None and units < lengths[-1]:
        raise ValueError(f"{name}: {lengths[-1]} classes need as many output units, but units is {units}")
    sizes = [b - a for a, b in pairwise([0, *lengths])]
    orders = [drawn[torch.randperm(len(drawn), generator=generator(seed, "stream", salt))] for seed in seeds]
    visits = [list(order[:lengths[-1]].split(sizes)) for order in orders]
    return _partition(name, images, visits, lambda counts: int(counts.topk(max(sizes)).values.sum()), "class",
                      {"ordered": True, "retention": True} | rest, 0 if units is None else units - lengths[-1])


def permuted(name: str, seeds: Sequence[int], images: Images, *, tasks: int, examples: int | None = None,
             identity_first: bool = False, scenario: str = "domain", **rest: Any) -> Stream:
    """Tasks that show the same images under a pixel permutation each, drawn for each seed and task.

    Args:
        tasks: tasks, at least 1.
        examples: images trained on in each task, drawn for each seed and task; None = all.
        identity_first: whether the first task shows the images as they are.
        scenario: 'domain' (one unit a class), or 'class' or 'task' (units of its own for every task).
        rest: `boundaries`, `defaults` and `options` of the `Stream`.
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
    """Tasks that show the same images under one rotation each, as PIL's nearest-neighbour `Image.rotate` does.

    Args:
        tasks: tasks, at least 1.
        angles: 'bins' draws task t's angle from the t-th of T equal bins of [0, 180) degrees (Lopez-Paz & Ranzato
            2017, arXiv:1706.08840), 'any' from all of [0, 180) (Buzzega et al. 2020, arXiv:2004.07211).
        examples, scenario, rest: see `permuted`.
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
    """Tasks that show the same images through one pixel table each, `warp` [S, T, D]; the other arguments as above.

    Raises:
        ValueError: where more training images are asked for than there are.
    """
    check_counts(name, seeds, examples=examples)
    check_choice(name, scenario=scenario, among=SCENARIOS)
    n_seeds, tasks, n_classes = len(seeds), warp.shape[1], images.n_classes
    there = images.train.shape[-1]
    if examples is not None and examples > there:
        raise ValueError(f"{name}: {examples} training examples a task are asked for, but there are {there}; leave "
                         f"examples out to use all")
    variant = (torch.arange(tasks) * len(images.y)).view(1, -1, 1)
    train, test = (rows.view(-1, 1, rows.shape[-1]) for rows in (images.train, images.test))
    if examples is not None:
        picks = [torch.randperm(there, generator=generator(seed, "stream", "examples", task))[:examples]
                 for seed in seeds for task in range(tasks)]
        train = train.expand(n_seeds, tasks, -1).gather(2, torch.stack(picks).view(n_seeds, tasks, -1))
    label = None
    classes = torch.ones(n_seeds, tasks, n_classes, dtype=torch.bool)
    if scenario != "domain":
        label = torch.arange(tasks * n_classes).view(tasks, n_classes).expand(n_seeds, -1, -1)
        classes = torch.eye(tasks, dtype=torch.bool).repeat_interleave(n_classes, 1).expand(n_seeds, -1, -1)
    flat = images.x.flatten(1)
    return Stream(
        # The blank pixel last: what a table takes from outside the image.
        name, torch.cat([flat, flat.new_zeros(len(flat), 1)], 1), images.y,
        (train + variant).expand(n_seeds, -1, -1), (test + variant).expand(n_seeds, -1, -1), classes, images.shape,
        scenario, scale=images.scale, warp=warp, label=label, **rest)


def source(name: str, images: Images, *, turned: bool = False, **rest: Any) -> Source:
    """What a start is learned from by class: all examples of `images`, of every class as many as of the smallest.

    Args:
        turned: whether every class turned by 90, 180 and 270 degrees is a further class.
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
    """What a start is learned from by domain: the training images of `images` through each pixel table of
    `warp` [G, D].

    Args:
        content, rest: further names of what it shows, and `options` of the `Source`.
    """
    rows = _by_class(images, images.train)
    variant = (torch.arange(len(warp)) * len(images.y)).view(-1, 1, 1)
    flat = images.x.flatten(1)
    return Source(name, torch.cat([flat, flat.new_zeros(len(flat), 1)], 1), images.y, rows + variant, images.shape,
                  images.scale, warp, content=frozenset(images.names) | content, **rest)


def rotations(name: str, images: Images, *, count: int, **rest: Any) -> Source:
    """Domains under `count` rotations of [0, 180) degrees; their numbers are no stream's."""
    check_counts(name, [0], domains=count)
    degrees = 180 * torch.rand(count, generator=generator("source", "angles"), dtype=torch.float64)
    return domains(name, images, rotation(degrees, images.shape), content=_angles(images, degrees), **rest)


def permutations(name: str, images: Images, *, count: int, **rest: Any) -> Source:
    """Domains under `count` pixel permutations; their numbers are no stream's."""
    check_counts(name, [0], domains=count)
    pixels = images.x[0].numel()
    return domains(name, images, torch.stack([torch.randperm(pixels, generator=generator("source", "permutation", i))
                                              for i in range(count)]), **rest)


def _by_class(images: Images, rows: Tensor) -> Tensor:
    """[K, n]: of every class the first n of `rows`, as many as the smallest has."""
    y = images.y[rows]
    least = int(torch.bincount(y, minlength=images.n_classes).min())
    return rows[y.argsort(stable=True)][(y.sort(stable=True).values.diff(prepend=torch.tensor([-1])) != 0)
                                        .nonzero() + torch.arange(least)]


def rotation(degrees: Tensor, shape: tuple[int, ...]) -> Tensor:
    """For each angle of `degrees` [...], the pixel table [..., D] that rotates an image of `shape`; D = the blank."""
    from PIL import Image

    height, width = shape[-2:]
    area, channels = height * width, int(np.prod(shape[:-2]))
    numbers = Image.fromarray(np.arange(area, dtype=np.int32).reshape(height, width))
    plane = torch.stack([torch.from_numpy(np.array(numbers.rotate(angle, fillcolor=area), dtype=np.int64)).flatten()
                         for angle in degrees.flatten().tolist()]).unsqueeze(1)
    table = plane + area * torch.arange(channels).view(-1, 1)
    return table.where(plane < area, channels * area).flatten(1).view(*degrees.shape, -1)


def check_counts(name: str, seeds: Sequence[int], **counts: int | None) -> None:
    """Raises ValueError unless there are seeds and every count that is given is a whole number of 1 or more."""
    if len(seeds) == 0:
        raise ValueError(f"{name}: no seeds; give at least one, for example [0]")
    for what, count in counts.items():
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise ValueError(f"{name}: {what} must be a whole number of 1 or more, got {count!r}")


def check_choice(name: str, *, among: Sequence[object], **choice: object) -> None:
    """Raises ValueError unless the one argument in `choice` is `among` what is offered."""
    for what, value in choice.items():
        if value not in among:
            raise ValueError(f"{name}: {what} {value!r} is not offered; there are {', '.join(map(repr, among))}")


def _partition(name: str, images: Images, visits: Sequence[Sequence[Tensor]], widest: Callable[[Tensor], int],
               scenario: str, rest: Mapping[str, Any], spare: int = 0) -> Stream:
    """The stream in which seed s meets in task t the classes `visits[s][t]`."""
    check_choice(name, scenario=scenario, among=SCENARIOS)
    sizes = {len(part) for part in visits[0]}
    if scenario == "domain" and len(sizes) > 1:
        raise ValueError(f"{name}: the domain scenario needs equally many classes in every task, but there are tasks "
                         f"of {min(sizes)} and of {max(sizes)}; choose 'class' or 'task'")
    if scenario != "class" and min(sizes) < 2:
        raise ValueError(f"{name}: the {scenario} scenario needs 2 or more classes in every task, or there is nothing "
                         f"to tell apart; choose 'class', or more classes a task")
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
    """[S, T, width]: the `examples` [n] or [S, n] whose class has its `home` [S, K] in the task, padded with -1; class
    after class by the number that `order` [S, K] gives it, or as given."""
    examples = examples.expand(len(home), -1)
    counts = torch.stack([torch.bincount(y[own], minlength=home.shape[1]) for own in examples])
    rows = torch.full((len(home), tasks, widest(counts.max(0).values)), -1)
    for s, own in enumerate(examples):
        task = home[s][y[own]]
        for t in range(tasks):
            here = own[task == t]
            if order is not None:
                here = here[order[s][y[here]].argsort(stable=True)]
            rows[s, t, :len(here)] = here
    return rows
