"""Streams from Omniglot: 1,623 handwritten characters from 50 alphabets, each drawn by 20 people."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lifelong.data import build
from lifelong.data.files import decoded, find, fingerprint, members
from lifelong.data.source import Source
from lifelong.data.stream import Stream
from lifelong.randomness import generator

DRAWINGS, TRAINED, SIDE = 20, 15, 105
_CHARACTERS = {"background": 964, "evaluation": 659}
_FOLDERS = ("omniglot", "omniglot-py", "omniglot/omniglot-py", "omniglot/python", ".")
# 20 epochs: after 1 or 5 epochs over 15 drawings each, replay from a random start is no better than chance on the
# background characters. Protocols with one epoch are for meta-learned starts.
_DEFAULTS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 20, "batch_size": 10,
             "source": "omniglot"}
_LENGTHS = (10, 50, 100, 200, 300, 400, 500, 600)
_ONE_PASS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 1,
             "source": "omniglot"}
# The zip files unpack to 10 MB; the folders have 32,460 files of less than a kilobyte.
_CEILING = 100_000_000


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 50, classes_per_task: int = 1,
          part: str = "evaluation", first: int = 0, classes: int | None = None, size: int = 28,
          drawings: str = "fixed", scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split Omniglot: one new handwritten character in each of 50 tasks, 15 training and 5 test drawings of each.

    Args:
        data: folder with Omniglot; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of tasks, at least 1.
        classes_per_task: characters of each task, drawn for each seed.
        part: 'evaluation' (659 characters, for testing meta-trained learners) or 'background' (964, for meta-training).
        first, classes: characters are drawn from the `classes` characters that begin at index `first`; None extends to
            the last character of the part.
        size: side of the images in pixels: 105 (original), 84 (resized bilinearly, as in OML), 42 (Lanczos) or 28
            (Lanczos, as in ANML).
        drawings: 'fixed' trains on the drawings of the first 15 people and tests on those of the last 5; 'random' draws
            the 15 for each seed and character.
        scenario: 'class' (one output unit per character); with 2 or more characters per task also 'task' or 'domain'.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: the folder has no Omniglot.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: Javed & White 2019, arXiv:1905.12588, and Beaulieu et al. 2020, arXiv:2002.09571. Their code takes the
        drawings in the order in which the file system lists them, uses only the first 650 evaluation characters, and
        has 1,000 output units; here there are as many as characters in the stream. Paper is 1 and ink is 0.
    """
    name = "split-omniglot-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    build.check_counts(name, seeds, classes=classes)
    count = _CHARACTERS[part] - first if classes is None else classes
    _check_range(name, part, first, count)
    x, names = _load(name, data, part, size)
    chosen = slice(first, first + count)
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "part": part, "first": first, "classes": classes,
               "size": size, "drawings": drawings, "scenario": scenario, "boundaries": boundaries}
    return build.split(name, seeds, _images(name, seeds, x[chosen], names[chosen], drawings), tasks=tasks,
                       classes_per_task=classes_per_task, scenario=scenario, boundaries=boundaries, defaults=_DEFAULTS,
                       options=options)


def alphabets(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 50, size: int = 28,
              drawings: str = "fixed", scenario: str = "task", boundaries: bool = True) -> Stream:
    """Omniglot alphabets: one of 50 alphabets of 14 to 55 characters in each task.

    The stream has both the background and the evaluation part, so starts learned on either cannot be tested on it.

    Args:
        data: folder with Omniglot; None uses `$LIFELONG_DATA`, or else the user's cache.
        tasks: number of alphabets, 1 to 50: the first ones by name, those of the background part before the others, so
            that the output layer has the same size for every seed; their order is drawn for each seed.
        size, drawings, boundaries: as in split Omniglot.
        scenario: 'task' (the learner is told the alphabet) or 'class' (it is not); every alphabet has its own output
            units.

    Raises:
        FileNotFoundError: the folder has no Omniglot.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: Lake et al. 2015, doi:10.1126/science.aab3050. The 50 alphabets are 50 tasks in Schwarz et al. 2018,
        arXiv:1805.06370, where the drawings are augmented and split in another way.
    """
    name = "omniglot-alphabets-v1"
    build.check_counts(name, seeds, tasks=tasks)
    loaded = [_load(name, data, part, size) for part in _CHARACTERS]
    characters = [character for _, names in loaded for character in names]
    alphabet = [character.split("/")[-2] for character in characters]
    groups = [[c for c, of in enumerate(alphabet) if of == group] for group in dict.fromkeys(alphabet)]
    if tasks > len(groups):
        raise ValueError(f"{name}: tasks is {tasks}, but there are {len(groups)} alphabets")
    images = _images(name, seeds, torch.cat([x for x, _ in loaded]), characters, drawings)
    options = {"tasks": tasks, "size": size, "drawings": drawings, "scenario": scenario, "boundaries": boundaries}
    return build.grouped(name, seeds, images, groups=groups[:tasks], scenario=scenario, boundaries=boundaries,
                         defaults=_DEFAULTS, options=options)


def o600(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS, units: int = 1000,
         part: str = "evaluation", first: int = 0, classes: int = 650, size: int = 28, drawings: str = "fixed",
         search: bool = False) -> Stream:
    """The stream of OML and ANML: up to 600 Omniglot characters, class after class, one image at a time, in one pass.

    Every character has 15 training images, and the output layer has 1,000 units. A task is the stretch between two
    `lengths`; the learner is not told where it ends, so one run measures all lengths. The accuracy on the training
    images is recorded as `accuracy_train`.

    Args:
        data: folder with Omniglot; None uses `$LIFELONG_DATA`, or else the user's cache.
        lengths: increasing numbers of characters after which the learner is measured; at most `classes`.
        units: output units, at least `lengths[-1]`.
        part: 'evaluation', or 'background' to choose step sizes.
        first, classes: each seed draws its characters and their order from the `classes` characters that begin at index
            `first`. The evaluation part has 659 characters, of which the authors' code uses 650.
        size: side of the images in pixels, as in split Omniglot; OML has 84, ANML 28.
        drawings: as in split Omniglot.
        search: whether each seed draws different characters in a different order, for choosing step sizes as the
            authors do.

    Raises:
        FileNotFoundError: the folder has no Omniglot.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: the code of Javed & White 2019, arXiv:1905.12588, and Beaulieu et al. 2020, arXiv:2002.09571, which takes
        the characters and drawings in the order in which the file system lists them. Here the order is random, so that
        the first n characters of a seed form the stream of length n.
    """
    name = "omniglot-o600-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    build.check_counts(name, seeds, classes=classes)
    _check_range(name, part, first, classes)
    x, names = _load(name, data, part, size)
    options = {"lengths": list(lengths), "units": units, "part": part, "first": first, "classes": classes,
               "size": size, "drawings": drawings, "search": search}
    return build.stretches(name, seeds, _images(name, seeds, x, names, drawings), lengths=lengths, units=units,
                           among=range(first, first + classes), salt="search" if search else "classes",
                           boundaries=False, defaults=_ONE_PASS, options=options)


def g600(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS,
         part: str = "evaluation", first: int = 0, size: int = 84) -> Stream:
    """The stream of GeMCL: up to 600 Omniglot characters, always the first ones, in one pass.

    For each seed 15 of the 20 drawings of a character are drawn as training images. There are as many output units as
    characters. A seed corresponds to an episode of the paper.

    Args:
        data: folder with Omniglot; None uses `$LIFELONG_DATA`, or else the user's cache.
        lengths: increasing numbers of characters after which the learner is measured.
        part, first: the stream has the `lengths[-1]` characters of the part that begin at index `first`, in an order
            drawn for each seed.
        size: side of the images in pixels, as in split Omniglot.

    Raises:
        FileNotFoundError: the folder has no Omniglot.
        ValueError: it is damaged, or has fewer classes or images than requested.

    Source: the code of GeMCL (Banayeeanzade et al. 2021), which learns features from `omniglot(classes=763)` and
        chooses among them on the next 200 background characters.
    """
    name = "omniglot-g600-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    classes = max(lengths, default=1)
    _check_range(name, part, first, classes)
    x, names = _load(name, data, part, size)
    options = {"lengths": list(lengths), "part": part, "first": first, "size": size}
    return build.stretches(name, seeds, _images(name, seeds, x, names, "random"), lengths=lengths,
                           among=range(first, first + classes), boundaries=False, defaults=_ONE_PASS, options=options)


def _check_range(name: str, part: str, first: int, count: int) -> None:
    available = _CHARACTERS[part]
    if not 0 <= first < available or first + count > available:
        raise ValueError(f"{name}: the characters {first} to {first + count - 1} are needed, but the {part} part has "
                         f"{available}, from 0 to {available - 1}")


def source(*, data: str | Path | None = None, part: str = "background", size: int = 28, first: int = 0,
           classes: int | None = None, turned: bool = False) -> Source:
    """The source of Omniglot: characters with all their 20 drawings.

    Args:
        data: folder with Omniglot; None uses `$LIFELONG_DATA`, or else the user's cache.
        part: 'background' (964 characters) or 'evaluation' (659).
        size: side of the images in pixels, as in split Omniglot.
        first: index of the first character, 0 or more; characters are sorted by alphabet and number.
        classes: number of characters from there; None uses all. The code of OML and ANML uses 963; that of GeMCL uses
            763 and validates on the next 200.
        turned: whether each character rotated by 90, 180 and 270 degrees is added as a further class.

    Raises:
        FileNotFoundError: the folder has no Omniglot.
        ValueError: it is damaged, or has fewer classes or images than requested.
    """
    name = "omniglot-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    build.check_counts(name, [0], classes=classes)
    count = _CHARACTERS[part] - first if classes is None else classes
    _check_range(name, part, first, count)
    x, names = _load(name, data, part, size)
    rows = torch.arange(count * DRAWINGS)
    images = build.Images(x[first:first + count].reshape(-1, 1, size, size), rows // DRAWINGS, rows, rows[:0],
                          scale=1 / 255, names=names[first:first + count])
    return build.source(name, images, turned=turned, options={
        "part": part, "size": size, "first": first, "classes": classes, "turned": turned})


def _images(name: str, seeds: Sequence[int], x: Tensor, names: Sequence[str], drawings: str) -> build.Images:
    """Labelled images of characters [K, 20, size, size], with 15 training and 5 test drawings each."""
    build.check_counts(name, seeds)
    build.check_choice(name, drawings=drawings, among=("fixed", "random"))
    n_classes, size = x.shape[0], x.shape[-1]
    order = torch.arange(DRAWINGS).expand(1, n_classes, -1)
    if drawings == "random":
        order = torch.stack([torch.rand(n_classes, DRAWINGS, generator=generator(seed, "stream", "drawings")).argsort(1)
                             for seed in seeds])
    rows = torch.arange(n_classes).unsqueeze(1) * DRAWINGS + order
    return build.Images(x.view(-1, 1, size, size), torch.arange(n_classes).repeat_interleave(DRAWINGS),
                        rows[..., :TRAINED].flatten(1), rows[..., TRAINED:].flatten(1), scale=1 / 255, names=names)


def _load(name: str, data: str | Path | None, part: str, size: int) -> tuple[Tensor, list[str]]:
    """The drawings of one part, uint8 [K, 20, size, size], and the names omniglot/ALPHABET/CHARACTER of its classes."""
    build.check_choice(name, size=size, among=(28, 42, 84, SIDE))
    stem = f"images_{part}"
    path = find(f"Omniglot's {stem}", [f"{place}/{stem}{kind}" for place in _FOLDERS for kind in (".zip", "")], data,
                source="https://github.com/brendenlake/omniglot", download=_download)
    with _opened(path) as (files, read):
        names = _drawings(path, files, part)
        sources = [path] if path.is_file() else [path.parent / each for each in names]
        array = decoded(f"omniglot-{part}-{size}", fingerprint(sources), lambda: np.stack(
            [_pixels(path, each, read(each), size) for each in names]).reshape(-1, DRAWINGS, size, size))
    return torch.from_numpy(array), ["/".join(["omniglot", *each.split("/")[-3:-1]]) for each in names[::DRAWINGS]]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names of the files in a zip archive or an unpacked folder, and a function that reads one of them."""
    if path.is_dir():
        yield ([each.relative_to(path.parent).as_posix() for each in path.glob("*/*/*.png")],
               lambda name: (path.parent / name).read_bytes())
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield [member.filename for member in members(archive, _CEILING)], archive.read
    except (zipfile.BadZipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged ({problem}); download it again") from problem


def _drawings(path: Path, files: Sequence[str], part: str) -> list[str]:
    """The names of the drawings among `files`, sorted by alphabet, character and drawer.

    Raises:
        ValueError: the part is not complete.
    """
    names = sorted(name for name in files if re.fullmatch(r"(.*/)?[^/]+/character\d+/\d+_\d+\.png", name))
    found = Counter(name.rsplit("/", 1)[0] for name in names)
    if len(found) != _CHARACTERS[part] or set(found.values()) != {DRAWINGS}:
        raise ValueError(f"{path} should have {DRAWINGS} drawings of each of {_CHARACTERS[part]} characters, but has "
                         f"{len(names)} drawings of {len(found)} characters; download it again")
    return names


def _pixels(path: Path, name: str, content: bytes, size: int) -> np.ndarray:
    """One drawing, uint8 [size, size]; paper is 255 and ink is 0."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError(f"{path}: {name} has {image.width}x{image.height} pixels instead of {SIDE}x{SIDE}")
            grey = image.convert("L")
    except (OSError, SyntaxError) as problem:
        raise ValueError(f"{path}: {name} is damaged ({problem}); download it again") from problem
    if size != SIDE:
        grey = grey.resize((size, size), Image.Resampling.BILINEAR if size == 84 else Image.Resampling.LANCZOS)
    return np.array(grey)


def _download(root: Path) -> None:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        Omniglot(str(root), background=background, download=True)
