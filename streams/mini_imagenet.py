"""Streams from mini-ImageNet: 100 classes of ImageNet, 600 photographs of 84x84 pixels each."""

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

TRAINED, TESTED = 500, 100
# The split by class of Ravi & Larochelle 2017, as in two public lists.
_SYNSETS = {
    "train": """n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831
        n02101006 n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052
        n02687172 n02747177 n02795169 n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140
        n03347037 n03400231 n03476684 n03527444 n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194
        n04067472 n04243546 n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003
        n04596742 n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560 n13133613""",
    "val": """n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042
        n03535780 n03584254 n03770439 n03773504 n03980874 n09256479""",
    "test": """n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525
        n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480""",
}
_NAMES = ("mini-imagenet", "mini_imagenet", "miniimagenet", "miniImagenet", "miniImageNet", "MiniImageNet",
          "MiniImagenet", "mini-ImageNet")
_WHAT = Collection(
    name="mini-ImageNet", key="mini-imagenet", side=84, resize=True,
    parts={part: len(names.split()) for part, names in _SYNSETS.items()}, images=600, places=_NAMES,
    source="https://huggingface.co/datasets/timm/mini-imagenet, or make it of ImageNet",
    synsets={name: part for part, names in _SYNSETS.items() for name in names.split()}, more=(650,))
_LENGTHS = (2, 5, 10, 15, 20)


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, classes_per_task: int | None = None,
          train: int = TRAINED, test: int = TESTED, examples: str = "fixed", scenario: str = "class",
          boundaries: bool = True) -> Stream:
    """Split mini-ImageNet: all 100 classes in 20 tasks of 5, with 500 training and 100 test photographs per class.

    All common layouts are read: Ravi & Larochelle's tables with a folder of images, one folder per class, the
    published pickles (no code in them is executed), Parquet files, and zip archives of these. Images of other sizes
    are resized to 84x84 with a Lanczos filter, as in the code of Finn et al. 2017 (arXiv:1703.03400); images in
    pickles were resized by the authors of the pickle. The Hugging Face hub has 650 images per class, of which the
    first 600 are used.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks, at least 1; classes and their order are drawn for each seed.
        classes_per_task: classes of each task; None divides all 100.
        train, test: training and test images of each class.
        examples: 'fixed' trains on the first and tests on the last images of a class in the order of the files, as
            A-GEM's code does; 'random' draws them for each seed.
        scenario: 'class', 'task' or 'domain'.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: the folder has no mini-ImageNet.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: Vinyals et al. 2016, arXiv:1606.04080, with the classes of Ravi & Larochelle 2017
        (openreview.net/forum?id=rJY0-Kcll).
    """
    name = "split-mini-imagenet-v1"
    options: dict[str, Any] = {"tasks": tasks, "classes_per_task": classes_per_task, "train": train, "test": test,
                               "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return protocols.split(name, seeds, _load(name, seeds, data), **options, source="mini-imagenet", options=options)


def agem(seeds: Sequence[int], *, data: str | Path | None = None, part: str = "evaluation",
         boundaries: bool = True) -> Stream:
    """mini-ImageNet as in A-GEM: task-incremental, one epoch, 17 tasks of 5 classes, and 3 tasks for validation.

    Channels are normalised by the means and standard deviations of ImageNet.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        part: 'evaluation' (17 tasks), 'validation' (3 tasks of the other 15 classes, for choosing hyper-parameters) or
            'all' (20 tasks of all classes).
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.

    Source: Chaudhry et al. 2019, arXiv:1902.10486, and 2020, arXiv:2010.11635, whose code has a ResNet-18 of full width
        and trains on the first 500 images of a class in the order of a pickle. Its 15 validation classes are the first
        of the pickle; here they are the first by part and name. The learning rate is that of its scripts for
        fine-tuning, EWC, A-GEM and ER-Ring.
    """
    name = "mini-imagenet-agem-v1"
    return protocols.agem(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, part=part,
                          boundaries=boundaries, source="mini-imagenet")


def gpm(seeds: Sequence[int], *, data: str | Path | None = None, boundaries: bool = True) -> Stream:
    """mini-ImageNet as in GPM: task-incremental, 20 tasks of 5 classes, ten epochs each.

    Channels are normalised by the means and standard deviations of ImageNet.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.

    Source: Saha et al. 2021, arXiv:2103.09762, whose script for mini-ImageNet is not public. The learning rate is that
        of the code of Lin et al. 2022 (TRGP, arXiv:2202.02931), which is derived from theirs; it holds out 2 % of the
        training images to decide when to lower the learning rate and when to stop. Both train batch normalisation on
        the first task only.
    """
    name = "mini-imagenet-gpm-v1"
    return protocols.gpm(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, boundaries=boundaries,
                         source="mini-imagenet")


def online(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10, boundaries: bool = True) -> Stream:
    """Online mini-ImageNet: class-incremental, one pass in batches of 10, 10 tasks of 10 classes or 20 tasks of 5.

    A random sixth of the images of every class, drawn for each seed, are test images. Pixels are in [0, 1] and not
    normalised.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: 10 as in ASER and SCR, or 20 as in the survey.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.

    Source: the code of Mai et al. 2021 (arXiv:2101.10423, a survey: 20 tasks) and of Shim et al. 2021
        (arXiv:2009.00093, ASER: 10 tasks), which drops the last batch of a task if it is not full.
    """
    name = "mini-imagenet-online-v1"
    return protocols.online(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, tasks=tasks,
                            boundaries=boundaries, source="mini-imagenet")


def oml(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS, train: int = 30,
        test: int = 60, units: int | None = 84, part: str = "test", search: bool = False) -> Stream:
    """The stream of OML on mini-ImageNet: up to 20 new classes, 30 images each, one image at a time, in one pass.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        lengths: increasing numbers of classes after which the learner is measured; at most 20.
        train, test: training and test images of each class, drawn for each seed.
        units: output units, at least `lengths[-1]`; None has as many as classes.
        part: 'test' (20 classes), or 'val' (16) to choose step sizes.
        search: whether each seed draws different classes in a different order, for choosing step sizes.

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.

    Source: the code of Lee et al. 2021 (AIM, doi:10.1109/ICCV48922.2021), which has the streams of Javed & White 2019,
        arXiv:1905.12588, with 30 images and 84 units (64 + 20 classes). It tests on the last tenth of the images of a
        class.
    """
    name = "mini-imagenet-oml-v1"
    return protocols.stretches(name, seeds, _load(name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=units, search=search, source="mini-imagenet",
                               options={"train": train, "test": test, "units": units, "search": search})


def gemcl(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = (20,), train: int = 100,
          test: int = 100, part: str = "test") -> Stream:
    """The stream of GeMCL on mini-ImageNet: 20 new classes, 100 training and 100 test images each, in one pass.

    A seed corresponds to an episode of the paper.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        lengths: increasing numbers of classes after which the learner is measured; at most 20.
        train, test: training and test images of each class, drawn for each seed.
        part: 'test' (20 classes) or 'val' (16).

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.

    Source: the code of GeMCL (Banayeeanzade et al. 2021).
    """
    name = "mini-imagenet-gemcl-v1"
    return protocols.stretches(name, seeds, _load(name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=None, search=False, source="mini-imagenet",
                               options={"train": train, "test": test})


def source(*, data: str | Path | None = None, part: str = "train") -> Source:
    """The source of mini-ImageNet: the photographs of one part, 600 per class.

    Args:
        data: folder with mini-ImageNet; None uses `$LIFELONG_DATA`, or else the user's cache.
        part: 'train' (64 classes), 'val' (16, for validation) or 'test' (20), as in Ravi & Larochelle 2017.

    Raises:
        FileNotFoundError, ValueError: as in split mini-ImageNet.
    """
    name = "mini-imagenet-v1"
    return _load(name, [0], data).part(name, part).source(name, {"part": part})


def _load(name: str, seeds: Sequence[int], data: str | Path | None) -> Photos:
    build.check_counts(name, seeds)
    return load(_WHAT, data)
