"""Pictures read from files, archives, pickles and Parquet into an array: what the child processes that decode do."""

from __future__ import annotations

import io
import json
import mmap
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What is asked for comes as JSON, for it passes through a pipe:
# a place is [path, member], the member of a zip archive or None for the file itself;
# a job is {"place", "kind": "picture", "pickle" or "parquet", "at": [...], "rows": [...]}: what lies at `at` of the
# place goes to `rows` of the array.
Place = Sequence[Any]
Job = Mapping[str, Any]

PIXELS = 50_000_000  # of one picture; the largest of ImageNet has 32 million
PICTURE = 100_000_000  # bytes of one picture's file
MOST = 1_000_000  # pictures of one pickle
TABLE = 8_000_000_000  # bytes of one pickle or Parquet file: all of mini-ImageNet has 1.3 billion
IMAGES = ("image_data", "data", "images", "image")
LABELS = ("labels", "label", "targets", "class_dict")


class Files:
    """Reads places, keeping the archives that they lie in open."""

    def __init__(self) -> None:
        self.archives: dict[str, zipfile.ZipFile] = {}

    def read(self, place: Place, ceiling: int) -> memoryview:
        """The bytes at a place, mapped where it is a file of its own.

        Raises:
            ValueError: where there are more than `ceiling`, or they cannot be read.
        """
        path, member = place
        try:
            if member is None:
                size = Path(path).stat().st_size
                if size > ceiling:
                    raise ValueError(f"{path} is of {size:,} bytes, more than the {ceiling:,} that this data can need")
                with open(path, "rb") as file:
                    if size < 1 << 20:
                        return memoryview(file.read())
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            if path not in self.archives:
                self.archives[path] = zipfile.ZipFile(path)
            if self.archives[path].getinfo(member).file_size > ceiling:
                raise ValueError(f"{called(place)} would unpack to more than the {ceiling:,} bytes that it can need")
            with self.archives[path].open(member) as inside:
                content = inside.read(ceiling + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as problem:
            raise ValueError(f"{called(place)} cannot be read ({problem}); get it anew") from problem
        if len(content) > ceiling:
            raise ValueError(f"{called(place)} would unpack to more than the {ceiling:,} bytes that it can need")
        return memoryview(content)


def called(place: Place) -> str:
    """A place, as an error names it."""
    return f"{place[0]}: {place[1]}" if place[1] is not None else str(place[0])


def picture(content: memoryview, side: int, resize: bool, name: str) -> np.ndarray:
    """A picture as uint8 [3, side, side]; where it has another size, resized with PIL's Lanczos filter, or refused.

    Raises:
        ValueError: with its `name`, where it is damaged, of another size or too large to be decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise Image.DecompressionBombError
            fits = resize or (width, height) == (side, side)
            colours = image.convert("RGB") if fits else None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} claims to be of more than {PIXELS:,} pixels, which none of these pictures is; get it "
                         f"anew") from None
    except Exception as problem:  # whatever the damage of a picture makes Pillow raise
        said = str(problem) if "BytesIO" not in str(problem) else "it is no JPEG or PNG"
        raise ValueError(f"{name} is damaged ({said}); get it anew") from problem
    if colours is None:
        raise ValueError(f"{name} is of {width}x{height} pixels instead of {side}x{side}")
    if (width, height) != (side, side):
        colours = colours.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(colours).transpose(2, 0, 1)


def write(out: np.ndarray, jobs: Sequence[Job], resize: bool, tell: Callable[[int], None]) -> None:
    """Decodes what `jobs` ask for into `out` [N, 3, side, side] and tells how many pictures were, now and then.

    Raises:
        ValueError: for the first that cannot be.
    """
    files, side = Files(), out.shape[-1]
    for job in jobs:
        place, rows = job["place"], job["rows"]
        if job["kind"] == "picture":
            out[rows[0]] = picture(files.read(place, PICTURE), side, resize, called(place))
            tell(1)
        elif job["kind"] == "parquet":
            wanted = dict(zip(job["at"], rows, strict=True))
            for at, content in _stored_pictures(files, place, wanted):
                out[wanted[at]] = picture(content, side, resize, f"{called(place)}: row {at}")
                tell(1)
        else:
            held = _held(files, place)
            images = {key: _pixels(one[0]) for key, one in held.items()}
            for (key, at), row in zip(job["at"], rows, strict=True):
                out[row] = _fitted(images[key][at], side)
            tell(len(rows))


def describe(places: Sequence[Place], kind: str) -> list[list[Any]]:
    """What tables of pictures hold: for each of `places` a list of [split or None, class, where they lie].

    A class is its name, or its number where the file has no names.

    Raises:
        ValueError: where one is not such a table.
    """
    files = Files()
    return [_described_parquet(files, place) if kind == "parquet" else _described_pickle(files, place)
            for place in places]


# ---- pickles


def _held(files: Files, place: Place) -> dict[str | None, tuple[Any, dict[Any, list[int]]]]:
    """For each split of a pickle, or None, its images and the positions of each class's."""
    from lifelong.data.pictures.unpickle import Refused, load

    content = files.read(place, TABLE)
    try:
        found = load(content)
        splits = found if isinstance(found, dict) and found and all(isinstance(v, dict) for v in found.values()) and \
            set(found) <= {"train", "val", "validation", "test"} else {None: found}
        return {split: _labelled(part) for split, part in splits.items()}
    except ValueError as problem:
        problem = problem if isinstance(problem, Refused) else Refused("a text in it is damaged")
        raise ValueError(f"{called(place)} is not read: {problem}; get it anew, from a source that you trust") from None


def _labelled(part: Any) -> tuple[Any, dict[Any, list[int]]]:
    from lifelong.data.pictures.unpickle import Refused

    if not isinstance(part, dict):
        raise Refused(f"it holds a {type(part).__name__}, not a dict of images and labels")
    image_key = next((key for key in IMAGES if key in part), None)
    label_key = next((key for key in LABELS if key in part), None)
    if image_key is None or label_key is None:
        raise Refused(f"it holds {', '.join(map(str, list(part)[:5])) or 'nothing'}, and needs image_data and "
                      "class_dict, data and labels, or images and labels")
    images = part[image_key]
    count = _count(images)
    if label_key == "class_dict":
        return images, _positions(part["class_dict"], count)
    labels = _values(part[label_key])
    if len(labels) != count:
        raise Refused(f"it holds {count:,} images and {len(labels):,} labels")
    names = _names(part.get("catname2label"))
    groups: dict[Any, list[int]] = {}
    for at, label in enumerate(labels):
        groups.setdefault(names.get(label, label), []).append(at)
    return images, groups


def _count(images: Any) -> int:
    """How many images there are in an array [N, height, width, 3], or [N, 3, height, width], or in a list of images."""
    from lifelong.data.pictures.unpickle import Array, Refused

    if isinstance(images, Array):
        pixels = images.numpy()
        shape = list(pixels.shape)
        if pixels.dtype != np.uint8 or len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise Refused(f"its images are {shape} of {pixels.dtype}, not [N, height, width, 3] of uint8")
        if not 0 < shape[0] <= MOST or 0 in shape:
            raise Refused(f"its images are {shape}, and there should be up to {MOST:,}")
        return shape[0]
    if isinstance(images, list) and 0 < len(images) <= MOST and all(map(_is_image, images)):
        return len(images)
    raise Refused("its images are no array [N, height, width, 3] of uint8, and no list of such images")


def _is_image(image: Any) -> bool:
    from lifelong.data.pictures.unpickle import Array

    if not isinstance(image, Array):
        return False
    shape = image.numpy().shape
    return image.numpy().dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[2]) and 0 not in shape


def _values(labels: Any) -> list[Any]:
    """Labels as numbers or names."""
    from lifelong.data.pictures.unpickle import Array, Refused, plain

    if isinstance(labels, Array) and labels.numpy().ndim == 1:
        labels = plain(labels)
    if not isinstance(labels, (list, tuple)):
        raise Refused("its labels are no list")
    return [_label(plain(label)) for label in labels]


def _label(label: Any) -> Any:
    from lifelong.data.pictures.unpickle import Refused

    if type(label) is int or (isinstance(label, str) and 0 < len(label) < 100):
        return label
    raise Refused(f"a label is a {type(label).__name__}, not a number or a name")


def _positions(classes: Any, count: int) -> dict[Any, list[int]]:
    from lifelong.data.pictures.unpickle import Refused

    if not isinstance(classes, dict):
        raise Refused("its class_dict is no dict")
    groups = {_label(name): _values(positions) for name, positions in classes.items()}
    every = [at for positions in groups.values() for at in positions]
    if any(type(at) is not int or not 0 <= at < count for at in every) or len(set(every)) < len(every):
        raise Refused(f"its class_dict names images that are not among its {count:,}, or one twice")
    return groups


def _names(numbers: Any) -> dict[Any, str]:
    """Names of numbered classes, of a dict from names to numbers."""
    return {number: name for name, number in numbers.items() if type(number) is int and isinstance(name, str)} \
        if isinstance(numbers, dict) else {}


def _described_pickle(files: Files, place: Place) -> list[Any]:
    return [[split, name, [[split, at] for at in positions]]
            for split, (_, groups) in _held(files, place).items() for name, positions in groups.items()]


def _pixels(images: Any) -> Any:
    return images.numpy() if not isinstance(images, list) else [one.numpy() for one in images]


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [3, side, side] of [height, width, 3] or [3, height, width]."""
    from PIL import Image

    if image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.shape[:2] != (side, side):
        if not 0 < image.shape[0] * image.shape[1] <= PIXELS:
            raise ValueError(f"an image of {image.shape[0]}x{image.shape[1]} pixels cannot be resized")
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((side, side),
                                                                               Image.Resampling.LANCZOS))
    return image.transpose(2, 0, 1)


# ---- Parquet


def _parquet(files: Files, place: Place) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{called(place)} is a Parquet file, which needs pyarrow: pip install pyarrow") from None
    try:
        return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(files.read(place, TABLE)))
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); get it anew") from None


def _column(file: Any, place: Place, names: Sequence[str]) -> str:
    there = file.schema_arrow.names
    found = next((name for name in names if name in there), None)
    if found is None:
        raise ValueError(f"{called(place)} has the columns {', '.join(there[:8])}, and none called {names[0]}")
    return found


def _described_parquet(files: Files, place: Place) -> list[Any]:
    file = _parquet(files, place)
    import pyarrow

    column = _column(file, place, ("label", "labels", "class"))
    try:
        labels = file.read(columns=[column]).column(column).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); get it anew") from None
    try:
        about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    groups: dict[Any, list[int]] = {}
    for at, label in enumerate(labels):
        if type(label) not in (int, str):
            raise ValueError(f"{called(place)}: row {at} has no label")
        named = isinstance(names, list) and type(label) is int and 0 <= label < len(names)
        groups.setdefault(str(names[label]) if named else label, []).append(at)
    return [[None, name, positions] for name, positions in groups.items()]


def _stored_pictures(files: Files, place: Place, wanted: Mapping[int, int]) -> Iterator[tuple[int, memoryview]]:
    import pyarrow

    file = _parquet(files, place)
    column, at = _column(file, place, ("image", "img", "images")), -1
    try:
        for batch in file.iter_batches(batch_size=64, columns=[column], use_threads=False):
            for value in batch.column(0).to_pylist():
                at += 1
                if at not in wanted:
                    continue
                content = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(content, bytes):
                    raise ValueError(f"{called(place)}: row {at} has no picture's bytes")
                yield at, memoryview(content)
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); get it anew") from None


# ---- the child process


def main() -> None:
    """Reads what to do from the standard input and tells on the standard output what was done, in lines of JSON."""
    asked = json.loads(sys.stdin.readline())
    _limit(asked["memory"], asked["seconds"])
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if done >= 50:
            print(json.dumps({"done": done}), flush=True)
            done = 0

    try:
        if asked["task"] == "describe":
            print(json.dumps({"found": describe(asked["places"], asked["kind"])}), flush=True)
        else:
            out = np.memmap(asked["out"], np.uint8, "r+", asked["offset"], tuple(asked["shape"]))
            write(out, asked["jobs"], asked["resize"], tell)
            out.flush()
            print(json.dumps({"done": done, "found": True}), flush=True)
    except ValueError as problem:
        print(json.dumps({"error": str(problem)}), flush=True)
    except MemoryError:
        print(json.dumps({"error": "memory"}), flush=True)


def _limit(memory: int, seconds: int) -> None:
    """Bounds on what this process may take, where the system knows them."""
    try:
        import resource
    except ImportError:
        return
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
