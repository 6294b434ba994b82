"""Streams from MNIST: split, permuted, and the three published protocols called rotated MNIST."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from lifelong.data import build
from lifelong.data.files import find
from lifelong.data.source import Source
from lifelong.data.stream import Stream
from lifelong.randomness import generator

_FOLDERS = ("mnist/MNIST/raw", "MNIST/raw", "raw", "mnist", "MNIST", ".")
_SIZES = {"train": 60_000, "t10k": 10_000}
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"}


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 5, classes_per_task: int = 2,
          test_examples: int | None = None, scenario: str = "class", boundaries: bool = True,
          unverified: bool = False) -> Stream:
    """Split MNIST: two new digits in each of five tasks.

    Args:
        data: folder with MNIST; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks, at least 1.
        classes_per_task: digits of each task, drawn for each seed.
        test_examples: test images in total, a fixed sample of the 10,000 for quick experiments; None uses all.
        scenario: 'class' (10 output units), 'task' (the same, and the learner is told the task) or 'domain' (2 output
            units).
        boundaries: whether the learner is told where a task ends.
        unverified: whether to use files that are not those of MNIST by their checksums, for example Fashion-MNIST.

    Raises:
        FileNotFoundError: the folder has no MNIST.
        ValueError: a file is damaged or not that of MNIST, or has fewer classes or images than requested.

    Source: van de Ven & Tolias 2019, arXiv:1904.07734, with the paper's network, optimizer and batch size. The default
        is one epoch instead of the paper's 2,000 iterations per task.
    """
    defaults = {"model": "mlp(hidden=(400, 400))", "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 128}
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "test_examples": test_examples,
               "scenario": scenario, "boundaries": boundaries} | _insisted(unverified)
    return build.split("split-mnist-v1", seeds, _mnist("split-mnist-v1", data, test_examples, unverified), tasks=tasks,
                       classes_per_task=classes_per_task, scenario=scenario, boundaries=boundaries, defaults=defaults,
                       options=options)


def permuted(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10, examples: int | None = None,
             test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True,
             unverified: bool = False) -> Stream:
    """Permuted MNIST: all digits under a different permutation of the pixels in each task, including the first.

    Args:
        data: folder with MNIST; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks, at least 1.
        examples: training images of each task, drawn for each seed and task; None uses all 60,000.
        test_examples: test images of each task, a fixed sample of the 10,000 for quick experiments; None uses all.
        scenario: 'domain' (10 output units shared by all tasks), or 'class' or 'task' (10 output units per task).
        boundaries: whether the learner is told where a task ends.
        unverified: whether to use files that are not those of MNIST by their checksums, for example Fashion-MNIST.

    Raises:
        FileNotFoundError: the folder has no MNIST.
        ValueError: a file is damaged or not that of MNIST, or has fewer classes or images than requested.

    Source: Goodfellow et al. 2013, arXiv:1312.6211. `tasks=20` is the stream of Buzzega et al. 2020, arXiv:2004.07211,
        whose network, optimizer and batch size are the defaults; `tasks=20, examples=1000` with batches of 10 is the
        stream of Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    options = {"tasks": tasks, "examples": examples, "test_examples": test_examples, "scenario": scenario,
               "boundaries": boundaries} | _insisted(unverified)
    images = _mnist("permuted-mnist-v1", data, test_examples, unverified)
    return build.permuted("permuted-mnist-v1", seeds, images, tasks=tasks, examples=examples,
                          scenario=scenario, boundaries=boundaries, options=options,
                          defaults=_mlp(0.2, 128) | {"source": "permuted-mnist"})


def rotated_gem(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = 1000,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True,
                unverified: bool = False) -> Stream:
    """Rotated MNIST as in GEM: 20 increasing angles, 1,000 digits per task, one pass in batches of 10.

    Args:
        data: folder with MNIST; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks T, at least 1; the angle of task t is drawn for each seed from the t-th of T equal bins
            of [0, 180) degrees.
        examples: training images of each task, drawn for each seed and task; None uses all 60,000.
        test_examples: test images of each task, a fixed sample of the 10,000 for quick experiments; None uses all.
        scenario: 'domain' (10 output units shared by all tasks), or 'class' or 'task' (10 output units per task).
        boundaries: whether the learner is told where a task ends.
        unverified: whether to use files that are not those of MNIST by their checksums, for example Fashion-MNIST.

    Raises:
        FileNotFoundError: the folder has no MNIST.
        ValueError: a file is damaged or not that of MNIST, or has fewer classes or images than requested.

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, and the authors' code, which draws the angles without a seed.
        The learning rate is that of the code for GEM; the code's plain learner has 0.003.
    """
    return _rotated("rotated-mnist-gem-v1", seeds, data, "bins", _mlp(0.1, 10), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries, **_insisted(unverified))


def rotated_mer(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = 1000,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True,
                unverified: bool = False) -> Stream:
    """Rotated MNIST as in MER: 20 increasing angles, 1,000 digits per task, one pass, one digit at a time.

    Args:
        data, tasks, examples, test_examples, scenario, boundaries, unverified: as in rotated MNIST as in GEM.

    Raises:
        FileNotFoundError: the folder has no MNIST.
        ValueError: a file is damaged or not that of MNIST, or has fewer classes or images than requested.

    Source: Riemer et al. 2018, arXiv:1810.11910. The learning rate is that of the authors' code for GEM; the code's
        plain learner has 0.0003 and its experience replay 0.1. Here the angles are drawn for each seed; the authors'
        published files fix one draw.
    """
    return _rotated("rotated-mnist-mer-v1", seeds, data, "bins", _mlp(0.01, 1), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries, **_insisted(unverified))


def rotated_der(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = None,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True,
                unverified: bool = False) -> Stream:
    """Rotated MNIST as in DER: 20 unordered angles, all 60,000 digits in each task, in batches of 128.

    Args:
        data, examples, test_examples, scenario, boundaries, unverified: as in rotated MNIST as in GEM.
        tasks: number of tasks, at least 1; every task's angle is drawn for each seed from [0, 180) degrees.

    Raises:
        FileNotFoundError: the folder has no MNIST.
        ValueError: a file is damaged or not that of MNIST, or has fewer classes or images than requested.

    Source: Buzzega et al. 2020, arXiv:2004.07211, with one output layer of 10 units, as for the published numbers; the
        authors' later code has 200 units.
    """
    return _rotated("rotated-mnist-der-v1", seeds, data, "any", _mlp(0.2, 128), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries, **_insisted(unverified))


def rotations(*, data: str | Path | None = None, domains: int = 100, unverified: bool = False) -> Source:
    """The source of rotated MNIST: the training digits under 100 rotations.

    Args:
        data: folder with MNIST; None uses `$LIFELONG_DATA`, or else the user's cache.
        domains: number of rotations, drawn once from [0, 180) degrees; no stream uses them.
        unverified: whether to use files that are not those of MNIST by their checksums, for example Fashion-MNIST.
    """
    return build.rotations("rotated-mnist-v1", _mnist("rotated-mnist-v1", data, None, unverified), count=domains,
                           options={"domains": domains} | _insisted(unverified))


def permutations(*, data: str | Path | None = None, domains: int = 100, unverified: bool = False) -> Source:
    """The source of permuted MNIST: the training digits under 100 permutations of the pixels.

    Args:
        data: folder with MNIST; None uses `$LIFELONG_DATA`, or else the user's cache.
        domains: number of permutations, drawn once; no stream uses them.
        unverified: whether to use files that are not those of MNIST by their checksums, for example Fashion-MNIST.
    """
    return build.permutations("permuted-mnist-v1", _mnist("permuted-mnist-v1", data, None, unverified), count=domains,
                              options={"domains": domains} | _insisted(unverified))


def _rotated(name: str, seeds: Sequence[int], data: str | Path | None, angles: str, defaults: dict[str, Any],
             **options: Any) -> Stream:
    rotation = {key: value for key, value in options.items() if key not in ("test_examples", "unverified")}
    images = _mnist(name, data, options["test_examples"], options.get("unverified", False))
    return build.rotated(name, seeds, images, angles=angles,
                         defaults=defaults | {"source": "rotated-mnist"}, options=options, **rotation)


def _mlp(rate: float, batch_size: int) -> dict[str, Any]:
    return {"model": "mlp(hidden=(100, 100))", "optimizer": f"sgd(lr={rate})", "epochs": 1, "batch_size": batch_size}


def _insisted(unverified: bool) -> dict[str, Any]:
    """The option of a stream that is only recorded where it is used, so that earlier runs are found."""
    return {"unverified": True} if unverified else {}


def _mnist(name: str, data: str | Path | None, test_examples: int | None, unverified: bool) -> build.Images:
    """MNIST, the 60,000 training images first; `test_examples` of the 10,000 test images are a fixed sample."""
    build.check_counts(name, [0], test_examples=test_examples)
    x = np.concatenate([_idx(data, f"{part}-images-idx3-ubyte", (n, 28, 28), unverified) for part, n in _SIZES.items()])
    y = np.concatenate([_idx(data, f"{part}-labels-idx1-ubyte", (n,), unverified) for part, n in _SIZES.items()])
    if y.max() > 9:
        raise ValueError(f"{name}: the label files are not those of MNIST, because they contain a label {y.max()}; "
                         "download them again")
    available = _SIZES["t10k"]
    if test_examples is not None and test_examples > available:
        raise ValueError(f"{name}: test_examples is {test_examples}, but there are {available} test images; leave "
                         f"test_examples out to use all")
    test = torch.arange(available)
    if test_examples is not None:
        test = torch.randperm(available, generator=generator("mnist", "test"))[:test_examples].sort().values
    return build.Images(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y).to(torch.int64),
                        torch.arange(_SIZES["train"]), _SIZES["train"] + test, scale=1 / 255,
                        names=[] if unverified else [f"mnist/{c}" for c in range(10)])


def _idx(data: str | Path | None, stem: str, shape: tuple[int, ...], unverified: bool) -> np.ndarray:
    """The array of shape `shape` in an idx file, which may be gzipped and must have exactly the right size."""
    # In Kaggle's copy of MNIST, the names have a dot instead of the second hyphen from the end.
    stems = (stem, stem.replace("-idx", ".idx"))
    places = [f"{place}/{each}{ending}" for place in _FOLDERS for each in stems for ending in ("", ".gz")]
    path = find(f"MNIST's {stem}", places, data, source="https://ossci-datasets.s3.amazonaws.com/mnist/",
                download=_download)
    size = 4 + 4 * len(shape) + int(np.prod(shape))
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged ({problem}); download it again") from problem
    header = np.array([8 << 8 | len(shape), *shape], dtype=">i4").tobytes()
    if len(content) != size or not content.startswith(header):
        raise ValueError(f"{path} is not MNIST's {stem}, or is truncated: it should have {size:,} bytes with the "
                         f"header of an array {list(shape)}; download it again")
    if not unverified and hashlib.sha256(content).hexdigest() != _SHA256[stem]:
        raise ValueError(f"{path} is not MNIST's {stem}: its checksum differs, so it is Fashion-MNIST's, KMNIST's or a "
                         "changed file; add unverified=True to the stream to use it all the same")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(root / "mnist", download=True)
