"""Streams from MNIST: split classes, permuted pixels, and three protocols that are all called rotated MNIST."""

from __future__ import annotations

import gzip
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


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 5, classes_per_task: int = 2,
          test_examples: int | None = None, scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split MNIST: two new digits in each of five tasks.

    Args:
        data: folder with MNIST; None = see `lifelong.data.folder`.
        tasks: tasks, at least 1.
        classes_per_task: digits of each task; which ones is drawn for each seed.
        test_examples: test images in all, a fixed sample of the 10,000 for a quick look; None = all.
        scenario: 'class' (10 units), 'task' (10 units, the task being told) or 'domain' (2 units).
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: where the folder has no MNIST.
        ValueError: where a file is damaged, or more is asked for than there is.

    Source: van de Ven & Tolias 2019, arXiv:1904.07734: its network, optimizer and batch. By default one epoch
        instead of its 2,000 iterations a task.
    """
    defaults = {"model": "mlp(hidden=(400, 400))", "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 128}
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "test_examples": test_examples,
               "scenario": scenario, "boundaries": boundaries}
    return build.split("split-mnist-v1", seeds, _mnist("split-mnist-v1", data, test_examples), tasks=tasks,
                       classes_per_task=classes_per_task, scenario=scenario, boundaries=boundaries, defaults=defaults,
                       options=options)


def permuted(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 10, examples: int | None = None,
             test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True) -> Stream:
    """Permuted MNIST: all digits under another permutation of the pixels in each task, the first one included.

    Args:
        data: folder with MNIST; None = see `lifelong.data.folder`.
        tasks: tasks, at least 1.
        examples: images trained on in each task, drawn for each seed and task; None = all 60,000.
        test_examples: test images of each task, a fixed sample of the 10,000 for a quick look; None = all.
        scenario: 'domain' (10 output units), or 'class' or 'task' (10 units of its own for every task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: where the folder has no MNIST.
        ValueError: where a file is damaged, or more is asked for than there is.

    Source: Goodfellow et al. 2013, arXiv:1312.6211. `tasks=20` is the stream of Buzzega et al. 2020, arXiv:2004.07211,
        whose network, optimizer and batch are the defaults; `tasks=20, examples=1000` with batches of 10 is that of
        Lopez-Paz & Ranzato 2017, arXiv:1706.08840.
    """
    options = {"tasks": tasks, "examples": examples, "test_examples": test_examples, "scenario": scenario,
               "boundaries": boundaries}
    return build.permuted("permuted-mnist-v1", seeds, _mnist("permuted-mnist-v1", data, test_examples), tasks=tasks,
                          examples=examples, scenario=scenario, boundaries=boundaries,
                          defaults=_mlp(0.2, 128) | {"source": "permuted-mnist"}, options=options)


def rotated_gem(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = 1000,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True) -> Stream:
    """Rotated MNIST as in GEM: 20 growing angles, 1,000 digits a task, one pass in batches of 10.

    Args:
        data: folder with MNIST; None = see `lifelong.data.folder`.
        tasks: tasks, at least 1; task t's angle is drawn for each seed from the t-th of T equal bins of [0, 180).
        examples: images trained on in each task, drawn for each seed and task; None = all 60,000.
        test_examples: test images of each task, a fixed sample of the 10,000 for a quick look; None = all.
        scenario: 'domain' (10 output units), or 'class' or 'task' (10 units of its own for every task).
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: where the folder has no MNIST.
        ValueError: where a file is damaged, or more is asked for than there is.

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840, and its code, which draws the angles without a seed. The
        learning rate is the one its code uses for GEM; its plain learner uses 0.003.
    """
    return _rotated("rotated-mnist-gem-v1", seeds, data, "bins", _mlp(0.1, 10), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries)


def rotated_mer(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = 1000,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True) -> Stream:
    """Rotated MNIST as in MER: 20 growing angles, 1,000 digits a task, one pass, one digit at a time.

    Args:
        data, tasks, examples, test_examples, scenario, boundaries: as for rotated MNIST as in GEM.

    Raises:
        FileNotFoundError: where the folder has no MNIST.
        ValueError: where a file is damaged, or more is asked for than there is.

    Source: Riemer et al. 2018, arXiv:1810.11910. The learning rate is the one its code uses for GEM; its plain learner
        uses 0.0003 and its experience replay 0.1. Angles are drawn for each seed; its published files fix one draw.
    """
    return _rotated("rotated-mnist-mer-v1", seeds, data, "bins", _mlp(0.01, 1), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries)


def rotated_der(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 20, examples: int | None = None,
                test_examples: int | None = None, scenario: str = "domain", boundaries: bool = True) -> Stream:
    """Rotated MNIST as in DER: 20 unordered angles, all 60,000 digits a task, in batches of 128.

    Args:
        data, examples, test_examples, scenario, boundaries: as for rotated MNIST as in GEM.
        tasks: tasks, at least 1; every task's angle is drawn for each seed from all of [0, 180).

    Raises:
        FileNotFoundError: where the folder has no MNIST.
        ValueError: where a file is damaged, or more is asked for than there is.

    Source: Buzzega et al. 2020, arXiv:2004.07211: one head of 10 units, as for its published numbers; the later code of
        its authors has 200.
    """
    return _rotated("rotated-mnist-der-v1", seeds, data, "any", _mlp(0.2, 128), tasks=tasks, examples=examples,
                    test_examples=test_examples, scenario=scenario, boundaries=boundaries)


def rotations(*, data: str | Path | None = None, domains: int = 100) -> Source:
    """MNIST's training digits under 100 rotations: what a start for rotated MNIST is learned from.

    Args:
        data: folder with MNIST; None = see `lifelong.data.folder`.
        domains: rotations, drawn once from all of [0, 180) degrees; no stream's are among them.
    """
    return build.rotations("rotated-mnist-v1", _mnist("rotated-mnist-v1", data, None), count=domains,
                           options={"domains": domains})


def permutations(*, data: str | Path | None = None, domains: int = 100) -> Source:
    """MNIST's training digits under 100 permutations of the pixels: what a start for permuted MNIST is learned from.

    Args:
        data: folder with MNIST; None = see `lifelong.data.folder`.
        domains: permutations, drawn once; no stream's are among them.
    """
    return build.permutations("permuted-mnist-v1", _mnist("permuted-mnist-v1", data, None), count=domains,
                              options={"domains": domains})


def _rotated(name: str, seeds: Sequence[int], data: str | Path | None, angles: str, defaults: dict[str, Any],
             **options: Any) -> Stream:
    asked = {key: value for key, value in options.items() if key != "test_examples"}
    return build.rotated(name, seeds, _mnist(name, data, options["test_examples"]), angles=angles,
                         defaults=defaults | {"source": "rotated-mnist"}, options=options, **asked)


def _mlp(rate: float, batch_size: int) -> dict[str, Any]:
    return {"model": "mlp(hidden=(100, 100))", "optimizer": f"sgd(lr={rate})", "epochs": 1, "batch_size": batch_size}


def _mnist(name: str, data: str | Path | None, test_examples: int | None) -> build.Images:
    """All of MNIST: the 60,000 training images first, then the 10,000 test images or a fixed sample's rows of them."""
    build.check_counts(name, [0], test_examples=test_examples)
    x = np.concatenate([_idx(data, f"{part}-images-idx3-ubyte", (size, 28, 28)) for part, size in _SIZES.items()])
    y = np.concatenate([_idx(data, f"{part}-labels-idx1-ubyte", (size,)) for part, size in _SIZES.items()])
    if y.max() > 9:
        raise ValueError(f"{name}: the label files are not MNIST's, for they hold a label {y.max()}; get them anew")
    there = _SIZES["t10k"]
    if test_examples is not None and test_examples > there:
        raise ValueError(f"{name}: {test_examples} test examples are asked for, but there are {there}; leave "
                         f"test_examples out to use all")
    test = torch.arange(there)
    if test_examples is not None:
        test = torch.randperm(there, generator=generator("mnist", "test"))[:test_examples].sort().values
    return build.Images(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y).to(torch.int64),
                        torch.arange(_SIZES["train"]), _SIZES["train"] + test, scale=1 / 255,
                        names=[f"mnist/{c}" for c in range(10)])


def _idx(data: str | Path | None, stem: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array in an idx file, plain or gzipped, which must be of the given shape to the byte."""
    # Kaggle's copy of MNIST has a dot for the second hyphen from the end.
    stems = (stem, stem.replace("-idx", ".idx"))
    places = [f"{place}/{each}{ending}" for place in _FOLDERS for each in stems for ending in ("", ".gz")]
    path = find(f"MNIST's {stem}", places, data, source="https://ossci-datasets.s3.amazonaws.com/mnist/",
                download=_download)
    size = 4 + 4 * len(shape) + int(np.prod(shape))
    try:
        with cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            content = file.read(size + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged ({problem}); get it anew") from problem
    header = np.array([8 << 8 | len(shape), *shape], dtype=">i4").tobytes()
    if len(content) != size or not content.startswith(header):
        raise ValueError(f"{path} is not MNIST's {stem}, or is cut short: {size:,} bytes with the header of an array "
                         f"{list(shape)} were expected; get it anew")
    return np.frombuffer(content, dtype=np.uint8, offset=len(header)).reshape(shape)


def _download(root: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(root / "mnist", download=True)
