"""Decoding of pictures from files, zip archives, pickles and Parquet files into an array, in child processes."""

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

# Jobs are sent to the child processes through a pipe, as JSON. A place is [path, member], where member is the name in
# a zip archive, or None for the file itself. A job is {"place", "kind": "picture", "pickle" or "parquet", "at": [...],
# "rows": [...]}: the pictures at the positions `at` of the place are written to the rows `rows` of the array.
Place = Sequence[Any]
Job = Mapping[str, Any]

# Limits that no real data set reaches.
PIXELS = 50_000_000  # of one picture; the largest of ImageNet has 32 million
PICTURE = 100_000_000  # bytes of the file of one picture
MOST = 1_000_000  # pictures in one pickle
TABLE = 8_000_000_000  # bytes of one pickle or Parquet file; mini-ImageNet has 1.3 billion
IMAGES = ("image_data", "data", "images", "image")
LABELS = ("labels", "label", "targets", "class_dict")


class Files:
    """Reads places and keeps their zip archives open."""

    def __init__(self) -> None:
        self.archives: dict[str, zipfile.ZipFile] = {}

    def read(self, place: Place, ceiling: int) -> memoryview:
        """The bytes at a place; a file outside an archive is memory-mapped.

        Raises:
            ValueError: there are more than `ceiling` bytes, or they cannot be read.
        """
        path, member = place
        try:
            if member is None:
                size = Path(path).stat().st_size
                if size > ceiling:
                    raise ValueError(f"{path} has {size:,} bytes, more than the limit of {ceiling:,} for such a file")
                with open(path, "rb") as file:
                    if size < 1 << 20:
                        return memoryview(file.read())
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            if path not in self.archives:
                self.archives[path] = zipfile.ZipFile(path)
            if self.archives[path].getinfo(member).file_size > ceiling:
                raise ValueError(f"{called(place)} would unpack to more than the limit of {ceiling:,} bytes")
            with self.archives[path].open(member) as inside:
                content = inside.read(ceiling + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as problem:
            raise ValueError(f"{called(place)} cannot be read ({problem}); download it again") from problem
        if len(content) > ceiling:
            raise ValueError(f"{called(place)} would unpack to more than the limit of {ceiling:,} bytes")
        return memoryview(content)


def called(place: Place) -> str:
    """The name of a place in error messages."""
    return f"{place[0]}: {place[1]}" if place[1] is not None else str(place[0])


def picture(content: memoryview, side: int, resize: bool, name: str) -> np.ndarray:
    """A decoded picture, uint8 [3, side, side].

    Pictures of 16 bits are divided by 257. Palettes, grey pictures and CMYK are converted to RGB. Transparency and the
    orientation in EXIF data are ignored, as by torchvision's loader.

    Args:
        content: the bytes of a JPEG or PNG file.
        side: width and height in pixels.
        resize: whether a picture of another size is resized with PIL's Lanczos filter; otherwise it is refused.
        name: name of the picture in error messages.

    Raises:
        ValueError: the picture is damaged, has another size, or is too large to be decoded.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
            width, height = image.size
            if width * height > PIXELS:
                raise Image.DecompressionBombError
            fits = resize or (width, height) == (side, side)
            colours = _eight_bits(image).convert("RGB") if fits else None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{name} claims to have more than {PIXELS:,} pixels, which no picture of this data has; "
                         f"download it again") from None
    except Exception as problem:  # Pillow raises many kinds of exceptions for damaged pictures
        reason = str(problem) if "BytesIO" not in str(problem) else "it is not a JPEG or PNG"
        raise ValueError(f"{name} is damaged ({reason}); download it again") from problem
    if colours is None:
        raise ValueError(f"{name} has {width}x{height} pixels instead of {side}x{side}")
    if (width, height) != (side, side):
        colours = colours.resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(colours).transpose(2, 0, 1)


def _eight_bits(image: Any) -> Any:
    """A picture of 16-bit grey values as one of 8 bits; Pillow itself would cut them off at 255."""
    from PIL import Image

    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8))


def write(out: np.ndarray, jobs: Sequence[Job], resize: bool, tell: Callable[[int], None]) -> None:
    """Decodes the pictures of `jobs` into `out` [N, 3, side, side].

    Args:
        out: the array.
        jobs: the jobs.
        resize: as in `picture`.
        tell: called now and then with the number of pictures decoded since the last call.

    Raises:
        ValueError: a picture cannot be decoded.
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
    """The classes in pickles or Parquet files: for each of `places` a list of [split or None, class, positions].

    A class is given by its name, or by its number if the file has no names.

    Raises:
        ValueError: one of the files is not a table of pictures.
    """
    files = Files()
    return [_described_parquet(files, place) if kind == "parquet" else _described_pickle(files, place)
            for place in places]


# ---- pickles


def _held(files: Files, place: Place) -> dict[str | None, tuple[Any, dict[Any, list[int]]]]:
    """For each split of a pickle (None if it has no splits) its images and the positions of each class."""
    from lifelong.data.pictures.unpickle import Refused, load

    content = files.read(place, TABLE)
    try:
        found = load(content)
        splits = found if isinstance(found, dict) and found and all(isinstance(v, dict) for v in found.values()) and \
            set(found) <= {"train", "val", "validation", "test"} else {None: found}
        return {split: _labelled(part) for split, part in splits.items()}
    except ValueError as problem:
        problem = problem if isinstance(problem, Refused) else Refused("a text in it is damaged")
        raise ValueError(f"{called(place)} is not read: {problem}; download it again from a source that you trust") \
            from None


def _labelled(part: Any) -> tuple[Any, dict[Any, list[int]]]:
    from lifelong.data.pictures.unpickle import Refused

    if not isinstance(part, dict):
        raise Refused(f"it contains a {type(part).__name__}, not a dict of images and labels")
    image_key = next((key for key in IMAGES if key in part), None)
    label_key = next((key for key in LABELS if key in part), None)
    if image_key is None or label_key is None:
        raise Refused(f"it has {', '.join(map(str, list(part)[:5])) or 'no keys'}, but should have image_data and "
                      "class_dict, data and labels, or images and labels")
    images = part[image_key]
    count = _count(images)
    if label_key == "class_dict":
        return images, _positions(part["class_dict"], count)
    labels = _values(part[label_key])
    if len(labels) != count:
        raise Refused(f"it has {count:,} images but {len(labels):,} labels")
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
            raise Refused(f"its images are an array {shape} of {pixels.dtype}, not [N, height, width, 3] of uint8")
        if not 0 < shape[0] <= MOST or 0 in shape:
            raise Refused(f"its images are an array {shape}, but there should be 1 to {MOST:,} images")
        return shape[0]
    if isinstance(images, list) and 0 < len(images) <= MOST and all(map(_is_image, images)):
        return len(images)
    raise Refused("its images are neither an array [N, height, width, 3] of uint8 nor a list of such images")


def _is_image(image: Any) -> bool:
    from lifelong.data.pictures.unpickle import Array

    if not isinstance(image, Array):
        return False
    shape = image.numpy().shape
    return image.numpy().dtype == np.uint8 and len(shape) == 3 and 3 in (shape[0], shape[2]) and 0 not in shape


def _values(labels: Any) -> list[Any]:
    """The labels, as numbers or names."""
    from lifelong.data.pictures.unpickle import Array, Refused, plain

    if isinstance(labels, Array) and labels.numpy().ndim == 1:
        labels = plain(labels)
    if not isinstance(labels, (list, tuple)):
        raise Refused("its labels are not a list")
    return [_label(plain(label)) for label in labels]


def _label(label: Any) -> Any:
    from lifelong.data.pictures.unpickle import Refused

    if type(label) is int or (isinstance(label, str) and 0 < len(label) < 100):
        return label
    raise Refused(f"a label is a {type(label).__name__}, not a number or a name")


def _positions(classes: Any, count: int) -> dict[Any, list[int]]:
    from lifelong.data.pictures.unpickle import Refused

    if not isinstance(classes, dict):
        raise Refused("its class_dict is not a dict")
    groups = {_label(name): _values(positions) for name, positions in classes.items()}
    images = [at for positions in groups.values() for at in positions]
    if any(type(at) is not int or not 0 <= at < count for at in images) or len(set(images)) < len(images):
        raise Refused(f"its class_dict names an image that is not among its {count:,} images, or names one twice")
    return groups


def _names(numbers: Any) -> dict[Any, str]:
    """The names of numbered classes, from a dict of numbers by name."""
    return {number: name for name, number in numbers.items() if type(number) is int and isinstance(name, str)} \
        if isinstance(numbers, dict) else {}


def _described_pickle(files: Files, place: Place) -> list[Any]:
    return [[split, name, [[split, at] for at in positions]]
            for split, (_, groups) in _held(files, place).items() for name, positions in groups.items()]


def _pixels(images: Any) -> Any:
    return images.numpy() if not isinstance(images, list) else [one.numpy() for one in images]


def _fitted(image: np.ndarray, side: int) -> np.ndarray:
    """An image [height, width, 3] or [3, height, width], resized to uint8 [3, side, side]."""
    from PIL import Image

    if image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.shape[:2] != (side, side):
        if not 0 < image.shape[0] * image.shape[1] <= PIXELS:
            raise ValueError(f"an image has {image.shape[0]}x{image.shape[1]} pixels, which is too many to resize")
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
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); download it again") from None


def _column(file: Any, place: Place, names: Sequence[str]) -> str:
    columns = file.schema_arrow.names
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise ValueError(f"{called(place)} has the columns {', '.join(columns[:8])}, but no column {names[0]}")
    return found


def _described_parquet(files: Files, place: Place) -> list[Any]:
    file = _parquet(files, place)
    import pyarrow

    column = _column(file, place, ("label", "labels", "class"))
    try:
        labels = file.read(columns=[column]).column(column).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as problem:
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); download it again") from None
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
                    raise ValueError(f"{called(place)}: row {at} does not contain the bytes of a picture")
                yield at, memoryview(content)
    except (pyarrow.ArrowException, OSError) as problem:
        raise ValueError(f"{called(place)} is damaged ({str(problem).splitlines()[0]}); download it again") from None


# ---- the child process


def main() -> None:
    """Reads one request from the standard input; writes progress and result to the standard output, as JSON lines."""
    request = json.loads(sys.stdin.readline())
    _limit(request["memory"], request["seconds"])
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if done >= 50:
            print(json.dumps({"done": done}), flush=True)
            done = 0

    try:
        if request["task"] == "describe":
            print(json.dumps({"found": describe(request["places"], request["kind"])}), flush=True)
        else:
            out = np.memmap(request["out"], np.uint8, "r+", request["offset"], tuple(request["shape"]))
            write(out, request["jobs"], request["resize"], tell)
            out.flush()
            print(json.dumps({"done": done, "found": True}), flush=True)
    except ValueError as problem:
        print(json.dumps({"error": str(problem)}), flush=True)
    except MemoryError:
        print(json.dumps({"error": "memory"}), flush=True)


def _limit(memory: int, seconds: int) -> None:
    """Limits the memory and CPU time of this process, on systems that support it."""
    try:
        import resource
    except ImportError:
        return
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
