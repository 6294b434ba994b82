"""Streams from Tiny-ImageNet, photographs of 200 ImageNet classes at 64x64 pixels, and from 100 of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lifelong.data import build
from lifelong.data.pictures import protocols
from lifelong.data.pictures.layouts import Collection
from lifelong.data.pictures.photos import Photos, load
from lifelong.data.source import Source
from lifelong.data.stream import Stream

_WHOLE = Collection(
    name="Tiny-ImageNet", key="tiny-imagenet", side=64, resize=False, parts={"all": 200}, images=550,
    places=("tiny-imagenet-200", "tiny-imagenet", "tiny_imagenet", "TinyImageNet"),
    source="http://cs231n.stanford.edu/tiny-imagenet-200.zip")
_PART = Collection(
    name="tiny-imagenet-100", key="tiny-imagenet-100", side=64, resize=False,
    parts={"train": 64, "val": 16, "test": 20}, images=300, places=("tiny-imagenet-100",),
    source="Tiny-ImageNet: folders of 64, 16 and 20 of its classes, 300 images each, in train, val and test, or "
           "train.zip, val.zip and test.zip of them")
_LENGTHS = (2, 5, 10, 15, 20)
TRAINED, TESTED = 250, 50  # of the 300 images per class of tiny-imagenet-100, in the proportion of mini-ImageNet


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10, classes_per_task: int | None = None,
          train: int = 500, test: int = 50, examples: str = "fixed", scenario: str = "class",
          boundaries: bool = True) -> Stream:
    """Split Tiny-ImageNet: 200 classes in 10 tasks of 20, with 500 training and 50 test photographs per class.

    The test images are those of the official val folder, because the official test folder has no labels.

    Args:
        data: folder with Tiny-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks, at least 1; classes and their order are drawn for each seed.
        classes_per_task: classes of each task; None divides all 200.
        train, test: training and test images of each class.
        examples: 'fixed' trains on the official training images and tests on the official val images; 'random' draws
            both from all images, for each seed.
        scenario: 'class', 'task' or 'domain'.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: the folder has no Tiny-ImageNet.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: Le & Yang 2015 (cs231n.stanford.edu/reports/2015/pdfs/yle_project.pdf).
    """
    name = "split-tiny-imagenet-v1"
    options: dict[str, Any] = {"tasks": tasks, "classes_per_task": classes_per_task, "train": train, "test": test,
                               "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return protocols.split(name, seeds, _load(_WHOLE, name, seeds, data), **options, options=options)


def der(seeds: Sequence[int], *, data: str | Path | None = None, scenario: str = "class",
        boundaries: bool = True) -> Stream:
    """Tiny-ImageNet as in DER: 10 tasks of 20 classes, 100 epochs each in batches of 32, with random crops and flips.

    Args:
        data: folder with Tiny-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        scenario: 'class' or 'task'; a class-incremental run is also measured with the task told.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as in split Tiny-ImageNet.

    Source: Buzzega et al. 2020, arXiv:2004.07211, and the authors' code, which takes the classes in their official
        order; here the order is drawn for each seed. The learning rate is that of the code for fine-tuning and DER++.
    """
    name = "tiny-imagenet-der-v1"
    return protocols.split(
        name, seeds, _load(_WHOLE, name, seeds, data), train=500, test=50, examples="fixed", tasks=10,
        classes_per_task=20, scenario=scenario, boundaries=boundaries,
        options={"scenario": scenario, "boundaries": boundaries},
        defaults={"model": "resnet18(width=64, pool=0)", "optimizer": "sgd(lr=0.03)", "epochs": 100,
                  "batch_size": 32}, mean=(0.4802, 0.4480, 0.3975), std=(0.2770, 0.2691, 0.2821),
        augment="crop(padding=4) + flip")


def split_100(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10,
              classes_per_task: int | None = None, train: int = TRAINED, test: int = TESTED, examples: str = "fixed",
              scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split tiny-imagenet-100: 100 classes in 10 tasks of 10, with 250 training and 50 test photographs per class.

    Results on it are not comparable with those on mini-ImageNet or Tiny-ImageNet. It has 300 images of each of
    64 + 16 + 20 classes of Tiny-ImageNet. 25 of these classes are also in mini-ImageNet, in the same part.

    Args:
        data: folder with tiny-imagenet-100, as train, val and test or zip archives of these; None uses
            `$LIFELONG_DATA`, or else the user's cache.
        tasks, classes_per_task, train, test, examples, scenario, boundaries: as in split mini-ImageNet.

    Raises:
        FileNotFoundError: the folder has no tiny-imagenet-100.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: a part of Tiny-ImageNet (Le & Yang 2015) made for this project.
    """
    name = "split-tiny-imagenet-100-v1"
    options: dict[str, Any] = {"tasks": tasks, "classes_per_task": classes_per_task, "train": train, "test": test,
                               "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return protocols.split(name, seeds, _load(_PART, name, seeds, data), **options, source="tiny-imagenet-100",
                           options=options)


def agem_100(seeds: Sequence[int], *, data: str | Path | None = None, part: str = "evaluation",
             boundaries: bool = True) -> Stream:
    """The protocol of `mini-imagenet-agem` on tiny-imagenet-100; results do not compare with mini-ImageNet.

    Args:
        data: as in split-tiny-imagenet-100.
        part, boundaries: as in mini-imagenet-agem.

    Source: Chaudhry et al. 2019, arXiv:1902.10486, with 250 training images per class instead of 500.
    """
    name = "tiny-imagenet-100-agem-v1"
    return protocols.agem(name, seeds, _load(_PART, name, seeds, data), train=TRAINED, test=TESTED, part=part,
                          boundaries=boundaries, source="tiny-imagenet-100")


def gpm_100(seeds: Sequence[int], *, data: str | Path | None = None, boundaries: bool = True) -> Stream:
    """The protocol of `mini-imagenet-gpm` on tiny-imagenet-100; results do not compare with mini-ImageNet.

    Args:
        data: as in split-tiny-imagenet-100.
        boundaries: whether the learner is told where a task ends.

    Source: Saha et al. 2021, arXiv:2103.09762, with 250 training images per class instead of 500.
    """
    name = "tiny-imagenet-100-gpm-v1"
    return protocols.gpm(name, seeds, _load(_PART, name, seeds, data), train=TRAINED, test=TESTED,
                         boundaries=boundaries, source="tiny-imagenet-100")


def online_100(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10,
               boundaries: bool = True) -> Stream:
    """The protocol of `mini-imagenet-online` on tiny-imagenet-100; results do not compare with mini-ImageNet.

    Args:
        data: as in split-tiny-imagenet-100.
        tasks, boundaries: as in mini-imagenet-online.

    Source: Mai et al. 2021, arXiv:2101.10423, with 250 training images per class instead of 500.
    """
    name = "tiny-imagenet-100-online-v1"
    return protocols.online(name, seeds, _load(_PART, name, seeds, data), train=TRAINED, test=TESTED, tasks=tasks,
                            boundaries=boundaries, source="tiny-imagenet-100")


def oml_100(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS,
            train: int = 30, test: int = 60, units: int | None = 84, part: str = "test",
            search: bool = False) -> Stream:
    """The protocol of `mini-imagenet-oml` on tiny-imagenet-100; results do not compare with mini-ImageNet.

    Args:
        data: as in split-tiny-imagenet-100.
        lengths, train, test, units, part, search: as in mini-imagenet-oml.

    Source: Javed & White 2019, arXiv:1905.12588, and the code of AIM, as in mini-imagenet-oml.
    """
    name = "tiny-imagenet-100-oml-v1"
    return protocols.stretches(name, seeds, _load(_PART, name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=units, search=search, source="tiny-imagenet-100",
                               options={"train": train, "test": test, "units": units, "search": search})


def gemcl_100(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = (20,),
              train: int = 100, test: int = 100, part: str = "test") -> Stream:
    """The protocol of `mini-imagenet-gemcl` on tiny-imagenet-100; results do not compare with mini-ImageNet.

    Args:
        data: as in split-tiny-imagenet-100.
        lengths, train, test, part: as in mini-imagenet-gemcl.

    Source: the code of GeMCL (Banayeeanzade et al. 2021).
    """
    name = "tiny-imagenet-100-gemcl-v1"
    return protocols.stretches(name, seeds, _load(_PART, name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=None, search=False, source="tiny-imagenet-100",
                               options={"train": train, "test": test})


def source_100(*, data: str | Path | None = None, part: str = "train") -> Source:
    """The source of tiny-imagenet-100: the photographs of one part, 300 per class.

    Args:
        data: as in split-tiny-imagenet-100.
        part: 'train' (64 classes), 'val' (16, for validation) or 'test' (20); the 25 classes shared with mini-ImageNet
            are in the same part there.

    Raises:
        FileNotFoundError, ValueError: as in split-tiny-imagenet-100.
    """
    name = "tiny-imagenet-100-v1"
    return _load(_PART, name, [0], data).part(name, part).source(name, {"part": part})


def _load(what: Collection, name: str, seeds: Sequence[int], data: str | Path | None) -> Photos:
    build.check_counts(name, seeds)
    return load(what, data)
