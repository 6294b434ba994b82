"""Streams from mini-ImageNet: 100 classes of ImageNet, 600 photographs of 84x84 each."""

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
# Ravi & Larochelle 2017's split by class, as two public lists have it.
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
    """Split mini-ImageNet: all 100 classes in 20 tasks of 5, 500 training and 100 test photographs of each.

    Any layout is read: Ravi & Larochelle's tables with a folder of images, a folder for each class, the pickles that
    circulate (without running what is in them), Parquet, and zips of these. Images of other sizes are squeezed to
    84x84 with Lanczos' filter, as the code of Finn et al. 2017 (arXiv:1703.03400) does; those of pickles were by
    whoever made them. Of the 650 images a class on the Hugging Face hub the first 600 are taken.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        tasks: tasks, at least 1; classes and their order are drawn for each seed.
        classes_per_task: classes of each task; None divides all 100.
        train, test: images of each class to train and to test on.
        examples: 'fixed' trains on the first and tests on the last images of a class in the order of its files, as
            A-GEM's code does; 'random' draws which, for each seed.
        scenario: 'class', 'task' or 'domain'.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: where the folder has no mini-ImageNet.
        ValueError: where it is damaged, or more is asked for than there is.

    Source: Vinyals et al. 2016, arXiv:1606.04080, in the classes of Ravi & Larochelle 2017
        (openreview.net/forum?id=rJY0-Kcll).
    """
    name = "split-mini-imagenet-v1"
    options: dict[str, Any] = {"tasks": tasks, "classes_per_task": classes_per_task, "train": train, "test": test,
                               "examples": examples, "scenario": scenario, "boundaries": boundaries}
    return protocols.split(name, seeds, _load(name, seeds, data), **options, source="mini-imagenet", options=options)


def agem(seeds: Sequence[int], *, data: str | Path | None = None, part: str = "evaluation",
         boundaries: bool = True) -> Stream:
    """mini-ImageNet as in the A-GEM family: task-incremental, one epoch, 17 tasks of 5 classes after 3 for choosing.

    Channels are normalised by ImageNet's means and deviations.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        part: 'evaluation' (17 tasks), 'validation' (3 tasks of 15 other classes, on which hyper-parameters are chosen)
            or 'all' (20 tasks of all classes).
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.

    Source: Chaudhry et al. 2019, arXiv:1902.10486, and 2020, arXiv:2010.11635, whose code has the ResNet-18 of full
        width and takes a class's first 500 images in the order of a pickle; its 15 classes for choosing are the first
        ones there, here the first by part and name. The learning rate is the one its scripts use for fine-tuning, EWC,
        A-GEM and ER-Ring.
    """
    name = "mini-imagenet-agem-v1"
    return protocols.agem(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, part=part,
                          boundaries=boundaries, source="mini-imagenet")


def gpm(seeds: Sequence[int], *, data: str | Path | None = None, boundaries: bool = True) -> Stream:
    """mini-ImageNet as in GPM: task-incremental, 20 tasks of 5 classes, ten epochs each.

    Channels are normalised by ImageNet's means and deviations.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.

    Source: Saha et al. 2021, arXiv:2103.09762, whose script for mini-ImageNet is not public; the learning rate is that
        of the code of Lin et al. 2022 (TRGP, arXiv:2202.02931), which was made from theirs and holds out a fiftieth of
        the training images to lower it and to stop. Both learn batch normalisation on the first task alone.
    """
    name = "mini-imagenet-gpm-v1"
    return protocols.gpm(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, boundaries=boundaries,
                         source="mini-imagenet")


def online(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10, boundaries: bool = True) -> Stream:
    """mini-ImageNet online: class-incremental, one pass in batches of 10, 10 tasks of 10 classes or 20 of 5.

    A random sixth of every class's images, drawn for each seed, is for testing; pixels are in [0, 1], not normalised.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        tasks: 10 as in ASER and SCR, or 20 as in the survey.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.

    Source: the code of Mai et al. 2021 (arXiv:2101.10423, a survey: 20 tasks) and of Shim et al. 2021
        (arXiv:2009.00093, ASER: 10 tasks), which leaves out a task's last batch where it is not full.
    """
    name = "mini-imagenet-online-v1"
    return protocols.online(name, seeds, _load(name, seeds, data), train=TRAINED, test=TESTED, tasks=tasks,
                            boundaries=boundaries, source="mini-imagenet")


def oml(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS, train: int = 30,
        test: int = 60, units: int | None = 84, part: str = "test", search: bool = False) -> Stream:
    """OML's stream of mini-ImageNet: up to 20 new classes, 30 images each, one image at a time, one pass.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        lengths: numbers of classes after which is measured, growing; 20 at most.
        train, test: images of each class, drawn for each seed.
        units: output units, `lengths[-1]` or more; None: as many as classes.
        part: 'test' (20 classes), or 'val' (16), on which step sizes are chosen.
        search: whether each seed draws other classes in another order, to choose step sizes on.

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.

    Source: the code of Lee et al. 2021 (AIM, doi:10.1109/ICCV48922.2021), which has the streams of Javed & White 2019,
        arXiv:1905.12588, 30 images and 84 units (64 + 20 classes); it tests on the last tenth of a class's images.
    """
    name = "mini-imagenet-oml-v1"
    return protocols.stretches(name, seeds, _load(name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=units, search=search, source="mini-imagenet",
                               options={"train": train, "test": test, "units": units, "search": search})


def gemcl(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = (20,), train: int = 100,
          test: int = 100, part: str = "test") -> Stream:
    """GeMCL's stream of mini-ImageNet: 20 new classes, 100 images each and 100 to answer; a seed is an episode.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        lengths: numbers of classes after which is measured, growing; 20 at most.
        train, test: images of each class, drawn for each seed.
        part: 'test' (20 classes) or 'val' (16).

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.

    Source: the code of GeMCL (Banayeeanzade et al. 2021).
    """
    name = "mini-imagenet-gemcl-v1"
    return protocols.stretches(name, seeds, _load(name, seeds, data), train=train, test=test, lengths=lengths,
                               part=part, units=None, search=False, source="mini-imagenet",
                               options={"train": train, "test": test})


def source(*, data: str | Path | None = None, part: str = "train") -> Source:
    """mini-ImageNet's photographs by class, 600 each: what a start for new classes is learned from.

    Args:
        data: folder with mini-ImageNet; None = see `lifelong.data.folder`.
        part: 'train' (64 classes), 'val' (16, to choose on) or 'test' (20), as Ravi & Larochelle 2017 have them.

    Raises:
        FileNotFoundError, ValueError: as for split mini-ImageNet.
    """
    name = "mini-imagenet-v1"
    return _load(name, [0], data).part(name, part).source(name, {"part": part})


def _load(name: str, seeds: Sequence[int], data: str | Path | None) -> Photos:
    build.check_counts(name, seeds)
    return load(_WHAT, data)
