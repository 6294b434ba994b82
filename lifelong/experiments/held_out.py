"""Streams for tuning hyper-parameters, without the test examples of reported results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lifelong.data.stream import Stream
from lifelong.experiments.prepare import make_stream
from lifelong.randomness import generator
from lifelong.spec.run import OptionError, Options, at_least

FIRST = 1_000_000  # first seed of tuning; the seeds of runs start at 0
TESTED = range(10)  # seeds of runs whose test examples are kept out of tuning
SHARE = 0.2  # share of the training examples of every class used for validation


def tuning_stream(text: str, options: Options, extra: Mapping[str, Any] | None = None,
                  first_tasks: int | None = None) -> Stream:
    """The stream of an expression for tuning hyper-parameters, which contains no test examples.

    Its `options.seeds` seeds start at 1,000,000 and those of runs at 0, so class orders, permutations, angles, initial
    parameters and the order of examples are drawn anew. For each seed a random fifth of the training examples of every
    class is used for validation and four fifths for training. An example is held out in every task in which it occurs,
    so none is trained on under one rotation and validated under another. The pool of examples is a copy in memory
    without all test examples of the stream, so nothing can access them. The output layer is that of the whole stream.

    Args:
        text: the stream, as in `lifelong run`.
        options: seeds and data folder.
        extra: further options of the stream.
        first_tasks: number of tasks used, the first ones, 1 or more; None uses all. Hyper-parameters chosen on a few
            first tasks do not depend on later tasks.

    Raises:
        ValueError: a seed trains on test examples of another seed, or too few examples are left for validation.

    Source: Chaudhry et al. 2019, arXiv:1812.00420, choose on the first tasks of the stream itself and leave them out of
        the test; here they are tasks of other seeds.
    """
    at_least(1, first_tasks=1 if first_tasks is None else first_tasks)
    seeds = [*TESTED, *range(FIRST, FIRST + options.seeds)]
    stream = make_stream(text, options, extra, seeds)
    if stream.n_seeds != len(seeds):
        raise ValueError(f"{stream.name} was asked for {len(seeds)} seeds and has {stream.n_seeds}: a stream of fixed "
                         "seeds leaves no others to choose on")
    if first_tasks is not None and first_tasks > stream.n_tasks:
        raise OptionError(f"first_tasks must be {stream.n_tasks} or less, for {stream.name} has as many tasks, got "
                          f"{first_tasks}", "first_tasks")
    return _held_out(stream, len(TESTED), first_tasks or stream.n_tasks)


def _held_out(stream: Stream, tested: int, tasks: int) -> Stream:
    n = len(stream.y)
    asked = torch.zeros(n, dtype=torch.bool)
    asked[stream.test[stream.test >= 0] % n] = True
    train = stream.train[tested:, :tasks]
    example = train.clamp(min=0) % n
    if bool((asked[example] & (train >= 0)).any()):
        raise ValueError(f"{stream.name} draws anew for each seed which examples are tested on, so that one seed "
                         "trains on what another tests on, and nothing is left to choose on: fix which examples "
                         "test, or choose on another stream")
    validates = torch.stack([_drawn(stream, rows, FIRST + s) for s, rows in enumerate(train)])
    held = validates.gather(1, example.flatten(1)).view_as(train)
    learn, asks = (_packed(train.masked_fill((train < 0) | out, -1)) for out in (held, ~held))
    classes = stream.classes[tested:, :tasks]
    belong = classes.any(1)
    spare = stream.n_classes - 1 - int(belong.any(0).nonzero().max())
    if not bool(belong[:, :stream.n_classes - spare].all()):
        raise OptionError(f"the first {tasks} tasks of {stream.name} have other output units in every seed: choose on "
                         "all tasks, without first_tasks", "first_tasks")
    used = torch.unique(example[train >= 0])
    present = torch.unique(stream.y[used])
    label = None if stream.label is None else stream.label[tested:][..., present]
    if stream.label is None and not torch.equal(present, torch.arange(len(present))):
        label = present.expand(len(train), 1 if stream.warp is None else stream.warp.shape[1], -1)
    there = {"seeds": [FIRST, FIRST + len(train) - 1], "validates": SHARE, "tasks": tasks}
    return replace(
        stream, x=stream.x[used], y=torch.searchsorted(present, stream.y[used]),
        train=_moved(learn, used, n), test=_moved(asks, used, n), classes=classes, spare=spare, retention=False,
        warp=None if stream.warp is None else stream.warp[tested:], label=label,
        options={**stream.options, "tuning": there})


def search_stream(on: str, stream: Stream, options: Options) -> Stream:
    """Another whole stream for tuning, on its test examples; it shows no classes or images that `stream` tests on.

    Its `options.seeds` seeds start at 1,000,000. Model, optimizer, passes, batch size, augmentation and whether
    learners are told where a task ends are those of `stream`, unless given otherwise.

    Args:
        on: an expression, for example the same protocol with other characters.
        stream: the stream of the later runs, made for the seeds whose test examples are compared.
        options: seeds and data folder; `overlap` allows shared classes or images and is noted in the record.

    Raises:
        ValueError: the stream shows classes or images that `stream` tests on, one of the two does not name its
            classes, their scenarios differ, or its seeds are fixed.

    Source: Javed & White 2019, arXiv:1905.12588, choose step sizes on streams of other characters.
    """
    here = make_stream(on, options, None, range(FIRST, FIRST + options.seeds))
    if here.n_seeds != options.seeds:
        raise ValueError(f"{here.name} was asked for {options.seeds} seeds and has {here.n_seeds}: a stream of fixed "
                         "seeds leaves no others to choose on")
    if here.scenario != stream.scenario:
        raise OptionError(f"on is the stream {here.name}, which is {here.scenario}-incremental, and {stream.name} is "
                          f"{stream.scenario}-incremental: choose on a stream of the same scenario", "on")
    if not here.content or not stream.content:
        raise OptionError(f"on is for streams that name their classes, and {(stream if here.content else here).name} "
                          "does not say what it tests on, so nobody can tell whether the other holds some of it: leave "
                          "it out", "on")
    classes, images = here.content & stream.content, len(_images(here, whole=True) & _images(stream))
    if (classes or images) and not options.overlap:
        what = f"tests on {len(classes)} of the classes that {stream.name} tests on, for example {min(classes)}" \
            if classes else f"shows {images} of the images that {stream.name} tests on"
        raise OptionError(f"on is the stream {here.name}, which {what}: choose on others, or insist with overlap",
                          "on", "overlap")
    there: dict[str, Any] = {"seeds": [FIRST, FIRST + here.n_seeds - 1], "on": {"stream": here.name, **here.options}}
    there |= {"overlap": {"classes": len(classes), "images": images}} if classes or images else {}
    return replace(here, retention=False, defaults=stream.defaults, augment=stream.augment,
                   boundaries=stream.boundaries, options={**here.options, "tuning": there})


def _images(stream: Stream, whole: bool = False) -> set[bytes]:
    """Digests of the stored images that a stream tests on; with `whole` also of those it trains on."""
    parts = [stream.test, stream.train] if whole else [stream.test]
    rows = torch.unique(torch.cat([p[p >= 0] for p in parts]) % len(stream.y))
    return {hashlib.blake2b(one.tobytes(), digest_size=16).digest() for part in rows.split(1024)
            for one in stream.x[part].numpy()}


def _drawn(stream: Stream, rows: Tensor, seed: int) -> Tensor:
    """Mask [N] of the validation examples among one seed's training rows: a fifth of every class, at least one."""
    if not stream.problem.classes:
        raise OptionError(f"tuning holds out examples of every class, and the targets of {stream.name} are numbers: "
                          "give another stream as on", "on")
    there = torch.unique(rows[rows >= 0] % len(stream.y))
    there = there[torch.randperm(len(there), generator=generator(seed, "validation"))]
    validates = torch.zeros(len(stream.y), dtype=torch.bool)
    for one in torch.unique(stream.y[there]).tolist():
        own = there[stream.y[there] == one]
        if len(own) < 2:
            raise ValueError(f"{stream.name} has one training example of class {one}: it takes two, one to learn from "
                             "and one to choose by")
        validates[own[:max(1, round(SHARE * len(own)))]] = True
    return validates


def _packed(rows: Tensor) -> Tensor:
    """Rows [S, T, n] with the padding at the end, cut to the length of the longest task."""
    order = (rows < 0).byte().argsort(dim=-1, stable=True)
    return rows.gather(-1, order)[..., :int((rows >= 0).sum(-1).max())]


def _moved(rows: Tensor, used: Tensor, n: int) -> Tensor:
    """The same rows in a pool that holds only the `used` of `n` examples."""
    at = rows.clamp(min=0)
    return torch.where(rows < 0, -1, at // n * len(used) + torch.searchsorted(used, at % n))
