"""Published protocols on photographs of 100 classes: their tasks, and the default settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lifelong.data import build
from lifelong.data.pictures.photos import Photos
from lifelong.data.stream import Stream

_MODEL = "resnet18"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of each channel, with pixels in [0, 1]
ONE_PASS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 1}


def split(name: str, seeds: Sequence[int], photos: Photos, *, train: int, test: int, examples: str, tasks: int,
          classes_per_task: int | None, scenario: str, boundaries: bool, source: str | None = None,
          options: Mapping[str, Any], defaults: Mapping[str, Any] = {}, **rest: Any) -> Stream:
    """A stream whose classes and their order are drawn for each seed.

    Args:
        name, seeds, tasks, classes_per_task, scenario, boundaries, options: as in `build.split`.
        photos: the photographs.
        train, test, examples: as in `Photos.images`.
        source: the source from which starts for this stream are learned; None requires the user to name one.
        defaults: default settings of a run; those not given are Adam, batches of 10 and one epoch.
        rest: `mean`, `std` and `augment` of the `Stream`.
    """
    return build.split(name, seeds, photos.images(name, seeds, train=train, test=test, examples=examples), tasks=tasks,
                       classes_per_task=classes_per_task, scenario=scenario, boundaries=boundaries, options=options,
                       defaults={"model": _MODEL, "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 10,
                                 "source": source} | dict(defaults), **rest)


def agem(name: str, seeds: Sequence[int], photos: Photos, *, train: int, test: int, part: str, boundaries: bool,
         source: str) -> Stream:
    """The single-epoch protocol of A-GEM: 20 tasks of 5 classes, 3 of them for choosing hyper-parameters.

    Args:
        name, seeds, photos, train, test, boundaries, source: as in `split`.
        part: 'evaluation' has 17 tasks of the last 85 classes, 'validation' 3 tasks of the first 15, 'all' has 20
            tasks of all classes.
    """
    build.check_choice(name, part=part, among=("evaluation", "validation", "all"))
    build.check_counts(name, seeds)
    first, last = {"evaluation": (15, 100), "validation": (0, 15), "all": (0, 100)}[part]
    chosen = Photos(photos.x[first:last], photos.names[first:last], {})
    return split(name, seeds, chosen, train=train, test=test, examples="fixed", tasks=(last - first) // 5,
                 classes_per_task=5, scenario="task", boundaries=boundaries, source=source,
                 options={"part": part, "boundaries": boundaries}, **IMAGENET,
                 defaults={"model": "resnet18(width=64, stem='large', pool=0)", "optimizer": "sgd(lr=0.03)",
                           "epochs": 1, "batch_size": 10})


def gpm(name: str, seeds: Sequence[int], photos: Photos, *, train: int, test: int, boundaries: bool,
        source: str) -> Stream:
    """The protocol of GPM: task-incremental, 20 tasks of 5 classes, ten epochs each."""
    return split(name, seeds, photos, train=train, test=test, examples="fixed", tasks=20, classes_per_task=5,
                 scenario="task", boundaries=boundaries, source=source, options={"boundaries": boundaries}, **IMAGENET,
                 defaults={"optimizer": "sgd(lr=0.1)", "epochs": 10, "batch_size": 10})


def online(name: str, seeds: Sequence[int], photos: Photos, *, train: int, test: int, tasks: int, boundaries: bool,
           source: str) -> Stream:
    """The online class-incremental protocol: one pass in batches of 10; the training images are drawn for each seed."""
    return split(name, seeds, photos, train=train, test=test, examples="random", tasks=tasks, classes_per_task=None,
                 scenario="class", boundaries=boundaries, source=source,
                 options={"tasks": tasks, "boundaries": boundaries},
                 defaults={"optimizer": "sgd(lr=0.1)", "epochs": 1, "batch_size": 10})


def stretches(name: str, seeds: Sequence[int], photos: Photos, *, train: int, test: int, lengths: Sequence[int],
              part: str, units: int | None, search: bool, source: str, options: Mapping[str, Any]) -> Stream:
    """The classes of one part, one image at a time in one pass, measured whenever `lengths` classes were learned."""
    images = photos.part(name, part).images(name, seeds, train=train, test=test, examples="random")
    return build.stretches(name, seeds, images,
                           lengths=lengths, units=units, salt="search" if search else "classes", boundaries=False,
                           defaults=ONE_PASS | {"source": source}, options={
                               "lengths": list(lengths), "part": part, **options})
