"""Streams from Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people."""

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
# 20 passes: after 1 or 5 over 15 drawings each, replay from a random start is no better than chance on background
# characters. Protocols that pass once are for meta-learned starts.
_DEFAULTS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 20, "batch_size": 10,
             "source": "omniglot"}
_LENGTHS = (10, 50, 100, 200, 300, 400, 500, 600)
_ONE_PASS = {"model": "conv4(width=32)", "optimizer": "adam(lr=0.001)", "epochs": 1, "batch_size": 1,
             "source": "omniglot"}
# Its zip files unpack to 10 MB, its folders hold 32,460 files of less than a kilobyte.
_CEILING = 100_000_000


def split(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 50, classes_per_task: int = 1,
          part: str = "evaluation", first: int = 0, classes: int | None = None, size: int = 28,
          drawings: str = "fixed", scenario: str = "class", boundaries: bool = True) -> Stream:
    """Split Omniglot: one new handwritten character in each of 50 tasks, 15 training and 5 test drawings each.

    Args:
        data: folder with Omniglot; None = see `lifelong.data.folder`.
        tasks: tasks, at least 1; all 659 of the evaluation part at most.
        classes_per_task: characters of each task; which ones is drawn for each seed.
        part: 'evaluation' (659 characters, for learners that were meta-trained) or 'background' (964, to meta-train).
        first, classes: characters are drawn from `classes` of them, from `first` on; None: from all there are.
        size: side of the images in pixels: 105 as drawn, 84 (bilinear, as in OML), 42 (Lanczos) or 28 (Lanczos,
            as in ANML).
        drawings: 'fixed' trains on the first 15 people's and tests on the last 5's; 'random' draws which, for each
            seed and character.
        scenario: 'class' (a unit for every character), or from 2 characters a task on also 'task' and 'domain'.
        boundaries: whether the learner is told where a task ends.

    Raises:
        FileNotFoundError: where the folder has no Omniglot.
        ValueError: where it is damaged, or more is asked for than there is.

    Source: Javed & White 2019, arXiv:1905.12588, and Beaulieu et al. 2020, arXiv:2002.09571. Their code takes the
        drawings in the order in which the file system lists them, and only the first 650 evaluation characters; a
        learner there has 1,000 output units, here as many as characters occur. Paper is 1 and ink 0.
    """
    name = "split-omniglot-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    build.check_counts(name, seeds, classes=classes)
    count = _CHARACTERS[part] - first if classes is None else classes
    _check_range(name, part, first, count)
    x, names = _load(name, data, part, size)
    own = slice(first, first + count)
    options = {"tasks": tasks, "classes_per_task": classes_per_task, "part": part, "first": first, "classes": classes,
               "size": size, "drawings": drawings, "scenario": scenario, "boundaries": boundaries}
    return build.split(name, seeds, _images(name, seeds, x[own], names[own], drawings), tasks=tasks,
                       classes_per_task=classes_per_task, scenario=scenario, boundaries=boundaries, defaults=_DEFAULTS,
                       options=options)


def alphabets(seeds: Sequence[int], *, data: str | Path | None = None, tasks: int = 50, size: int = 28,
              drawings: str = "fixed", scenario: str = "task", boundaries: bool = True) -> Stream:
    """Omniglot's alphabets: one of 50 alphabets of 14 to 55 characters in each task.

    It mixes the background and the evaluation part, so nothing that was meta-trained on either may be tested on it.

    Args:
        data: folder with Omniglot; None = see `lifelong.data.folder`.
        tasks: alphabets, 1 to 50: always the first ones by name, the background part's first, so that every seed's
            output layer is of one size; their order is drawn for each seed.
        size, drawings, boundaries: as for split Omniglot.
        scenario: 'task' (units of its own for every alphabet, the task being told) or 'class' (likewise, not told).

    Raises:
        FileNotFoundError: where the folder has no Omniglot.
        ValueError: where it is damaged, or more is asked for than there is.

    Source: Lake et al. 2015, doi:10.1126/science.aab3050; 50 alphabets as 50 tasks as in Schwarz et al. 2018,
        arXiv:1805.06370, whose drawings were augmented and split otherwise.
    """
    name = "omniglot-alphabets-v1"
    build.check_counts(name, seeds, tasks=tasks)
    loaded = [_load(name, data, part, size) for part in _CHARACTERS]
    every = [character for _, names in loaded for character in names]
    there = [character.split("/")[-2] for character in every]
    groups = [[c for c, own in enumerate(there) if own == alphabet] for alphabet in dict.fromkeys(there)]
    if tasks > len(groups):
        raise ValueError(f"{name}: {tasks} tasks are asked for, but there are {len(groups)} alphabets")
    images = _images(name, seeds, torch.cat([x for x, _ in loaded]), every, drawings)
    options = {"tasks": tasks, "size": size, "drawings": drawings, "scenario": scenario, "boundaries": boundaries}
    return build.grouped(name, seeds, images, groups=groups[:tasks], scenario=scenario, boundaries=boundaries,
                         defaults=_DEFAULTS, options=options)


def o600(seeds: Sequence[int], *, data: str | Path | None = None, lengths: Sequence[int] = _LENGTHS, units: int = 1000,
         part: str = "evaluation", first: int = 0, classes: int = 650, size: int = 28, drawings: str = "fixed",
         search: bool = False) -> Stream:
    """600 characters one image at a time: class after class, 15 images each, one pass, 1,000 output units.

    A task is the stretch between two `lengths`, and the learner is not told where one ends, so one run measures all
    lengths. Accuracy on the images that were learned is kept as `accuracy_train`.

    Args:
        data: folder with Omniglot; None = see `lifelong.data.folder`.
        lengths: numbers of characters after which is measured, growing; `classes` at most.
        units: output units, `lengths[-1]` or more.
        part: 'evaluation' or 'background', whose characters are for choosing step sizes.
        first, classes: each seed draws its characters, and their order, from `classes` characters from `first` on;
            the evaluation part has 659, of which the authors' code takes 650.
        size: side of the images in pixels, as for split Omniglot: 84 in OML, 28 in ANML.
        drawings: as for split Omniglot.
        search: whether each seed draws other characters in another order, to choose step sizes on as the authors do.

    Raises:
        FileNotFoundError: where the folder has no Omniglot.
        ValueError: where it is damaged, or more is asked for than there is.

    Source: the code of Javed & White 2019, arXiv:1905.12588, and Beaulieu et al. 2020, arXiv:2002.09571, who take the
        characters and drawings in the order in which the file system lists them; here the order is drawn, so that the
        first n characters of a seed are the stream of length n.
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
    """600 characters, always the first ones, with as many output units: 15 of 20 drawings, drawn for each seed, train.

    Args:
        data: folder with Omniglot; None = see `lifelong.data.folder`.
        lengths: numbers of characters after which is measured, growing; a seed is an episode.
        part, first: the `lengths[-1]` characters from `first` on are taken, in an order drawn for each seed.
        size: side of the images in pixels, as for split Omniglot.

    Raises:
        FileNotFoundError: where the folder has no Omniglot.
        ValueError: where it is damaged, or more is asked for than there is.

    Source: the code of GeMCL (Banayeeanzade et al. 2021), who learn starts from `omniglot(classes=763)` and choose on
        the 200 background characters after them.
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
    there = _CHARACTERS[part]
    if not 0 <= first < there or first + count > there:
        raise ValueError(f"{name}: characters {first} to {first + count - 1} are asked for, but the {part} part has "
                         f"{there}, from 0 to {there - 1}")


def source(*, data: str | Path | None = None, part: str = "background", size: int = 28, first: int = 0,
           classes: int | None = None, turned: bool = False) -> Source:
    """Omniglot's characters with all 20 drawings each: what a start for split Omniglot is learned from.

    Args:
        data: folder with Omniglot; None = see `lifelong.data.folder`.
        part: 'background' (964 characters) or 'evaluation' (659).
        size: side of the images in pixels, as for split Omniglot.
        first: the first character, by alphabet and number, from 0.
        classes: how many from there; None = all. The code of OML and ANML uses 963, that of GeMCL 763 and validates on
            the 200 after them.
        turned: whether every character turned by 90, 180 and 270 degrees is a further class.

    Raises:
        FileNotFoundError: where the folder has no Omniglot.
        ValueError: where it is damaged, or more is asked for than there is.
    """
    name = "omniglot-v1"
    build.check_choice(name, part=part, among=tuple(_CHARACTERS))
    build.check_counts(name, [0], classes=classes)
    there = _CHARACTERS[part]
    count = there - first if classes is None else classes
    _check_range(name, part, first, count)
    x, names = _load(name, data, part, size)
    rows = torch.arange(count * DRAWINGS)
    images = build.Images(x[first:first + count].reshape(-1, 1, size, size), rows // DRAWINGS, rows, rows[:0],
                          scale=1 / 255, names=names[first:first + count])
    return build.source(name, images, turned=turned, options={
        "part": part, "size": size, "first": first, "classes": classes, "turned": turned})


def _images(name: str, seeds: Sequence[int], x: Tensor, names: Sequence[str], drawings: str) -> build.Images:
    """Images of characters [K, 20, size, size] whose 15 training and 5 test drawings are chosen as `drawings` says."""
    build.check_counts(name, seeds)
    build.check_choice(name, drawings=drawings, among=("fixed", "random"))
    n_classes, size = x.shape[0], x.shape[-1]
    own = torch.arange(DRAWINGS).expand(1, n_classes, -1)
    if drawings == "random":
        own = torch.stack([torch.rand(n_classes, DRAWINGS, generator=generator(seed, "stream", "drawings")).argsort(1)
                           for seed in seeds])
    rows = torch.arange(n_classes).unsqueeze(1) * DRAWINGS + own
    return build.Images(x.view(-1, 1, size, size), torch.arange(n_classes).repeat_interleave(DRAWINGS),
                        rows[..., :TRAINED].flatten(1), rows[..., TRAINED:].flatten(1), scale=1 / 255, names=names)


def _load(name: str, data: str | Path | None, part: str, size: int) -> tuple[Tensor, list[str]]:
    """Drawings uint8 [K, 20, size, size] of one part, and its K characters as omniglot/ALPHABET/CHARACTER."""
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
    """The names of the files in a zip archive or an unpacked folder, and how to read one."""
    if path.is_dir():
        yield ([each.relative_to(path.parent).as_posix() for each in path.glob("*/*/*.png")],
               lambda name: (path.parent / name).read_bytes())
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield [member.filename for member in members(archive, _CEILING)], archive.read
    except (zipfile.BadZipFile, zlib.error) as problem:
        raise ValueError(f"{path} is damaged ({problem}); get it anew") from problem


def _drawings(path: Path, files: Sequence[str], part: str) -> list[str]:
    """Those of `files` that are drawings, by alphabet, character and drawer; all of the part must be there."""
    names = sorted(name for name in files if re.fullmatch(r"(.*/)?[^/]+/character\d+/\d+_\d+\.png", name))
    found = Counter(name.rsplit("/", 1)[0] for name in names)
    if len(found) != _CHARACTERS[part] or set(found.values()) != {DRAWINGS}:
        raise ValueError(f"{path} should hold {DRAWINGS} drawings each of {_CHARACTERS[part]} characters, but holds "
                         f"{len(names)} of {len(found)}; get it anew")
    return names


def _pixels(path: Path, name: str, content: bytes, size: int) -> np.ndarray:
    """One drawing, uint8 [size, size], paper 255 and ink 0."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (SIDE, SIDE):
                raise ValueError(f"{path}: {name} is of {image.width}x{image.height} pixels instead of {SIDE}x{SIDE}")
            grey = image.convert("L")
    except (OSError, SyntaxError) as problem:
        raise ValueError(f"{path}: {name} is damaged ({problem}); get it anew") from problem
    if size != SIDE:
        grey = grey.resize((size, size), Image.Resampling.BILINEAR if size == 84 else Image.Resampling.LANCZOS)
    return np.array(grey)


def _download(root: Path) -> None:
    from torchvision.datasets import Omniglot

    for background in (True, False):
        Omniglot(str(root), background=background, download=True)
