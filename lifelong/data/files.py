"""Finds raw data, and caches the arrays decoded from it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from lifelong.files import lock, replacing, sweep

_PORTION = 1 << 24  # bytes per checksum


@dataclass(frozen=True)
class Plan:
    """A large array that has not been decoded yet.

    Attributes:
        shape: shape of the array, whose type is uint8.
        about: facts about it, JSON values, which are stored with it.
        fill: (file, offset) decodes it into the file, starting at this byte.
    """

    shape: tuple[int, ...]
    about: Mapping[str, Any]
    fill: Callable[[Path, int], None]


def folder(data: str | Path | None = None) -> Path:
    """The data folder: `data`, else $LIFELONG_DATA, else `lifelong/data` in the user's cache folder."""
    named = data or os.environ.get("LIFELONG_DATA")
    return Path(named).expanduser() if named else _user_cache() / "data"


def find(what: str, places: Sequence[str], data: str | Path | None, *, source: str,
         download: Callable[[Path], object] | None = None) -> Path:
    """The first of `places` that exists in the data folder; in the default folder it is downloaded if possible.

    Args:
        what: name of the data in the error message.
        places: paths relative to the data folder, in order of preference.
        data: see `folder`.
        source: origin of the data in the error message.
        download: puts the data into the given folder. Only called for the default folder; a folder named by the user
            is never written to.

    Raises:
        FileNotFoundError: none of the places exists.
    """
    root = folder(data)
    failure: Exception | None = None
    found = _first(root, places)
    if found is None and download is not None and not (data or os.environ.get("LIFELONG_DATA")):
        try:
            root.mkdir(parents=True, exist_ok=True)
            download(root)
        except Exception as problem:  # All errors of a download are handled alike.
            failure = problem
        found = _first(root, places)
    if found is None:
        tried = f", and downloading it failed: {failure}" if failure else ""
        shown = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        raise FileNotFoundError(f"{what} is not in {root} (looked for {shown}{tried}); get it from {source}, and name "
                                f"its folder with the option data or with LIFELONG_DATA") from failure
    return found


def members(archive: zipfile.ZipFile, ceiling: int) -> list[zipfile.ZipInfo]:
    """The files in a zip archive, after checks that their names stay inside and they have at most `ceiling` bytes.

    Raises:
        ValueError: a name is absolute or contains `..`, or the files would unpack to more than `ceiling` bytes.
    """
    inside = [member for member in archive.infolist() if not member.is_dir()]
    for member in inside:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or parts[:1] == ("/",) or (parts and parts[0].endswith(":")):
            raise ValueError(f"{archive.filename}: the archive names {member.filename!r}, which lies outside; get "
                             f"the file from its official source")
    size = sum(member.file_size for member in inside)
    if size > ceiling:
        raise ValueError(f"{archive.filename}: the archive would unpack to {size:,} bytes, more than the {ceiling:,} "
                         f"that this data can need; get the file from its official source")
    return inside


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the paths, sizes and modification times of `files`, which changes when a file is replaced."""
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        digest.update(f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def decoded(name: str, source: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that `decode` returns, decoded once: later calls map the stored array into memory.

    Args:
        name: name of the files in the cache folder ($LIFELONG_CACHE, else `lifelong/arrays` in the user's cache
            folder); every decoding has its own name.
        source: `fingerprint` of the raw data. An entry with another fingerprint, or a damaged one, is made anew.
        decode: makes the array; called only if the cache has no valid entry.

    Returns:
        The array; writing to it changes neither the file nor other readers' arrays.
    """
    home = _home()
    found = _stored(home / name, source)
    if found is not None:
        return found[0]
    array = decode()
    try:
        _keep(home / name, source, array)
    except OSError as problem:
        warnings.warn(f"cannot keep decoded data in {home} ({problem}), so it is decoded again next time; point "
                      f"LIFELONG_CACHE at a folder that can be written to", stacklevel=2)
        return array
    stored = _stored(home / name, source)
    return array if stored is None else stored[0]


def filled(name: str, source: str, plan: Callable[[], Plan]) -> tuple[np.ndarray, Mapping[str, Any]]:
    """A large array and the facts about it, decoded once, directly into the cache, and never whole in memory.

    One process at a time decodes; others that need the same array wait for it (see `lifelong.files.lock`). Interrupted
    decoding starts again; its incomplete files are ignored and removed.

    Args:
        name, source: see `decoded`.
        plan: the array to decode; called only if the cache has no valid entry.

    Raises:
        OSError: the cache has no room for the array, or cannot be written to.
    """
    path = _home() / name
    found = _stored(path, source)
    if found is not None:
        return found
    todo = plan()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.with_name(f".{name}.lock")):
            found = _stored(path, source)  # another process may have made it meanwhile
            if found is not None:
                return found
            sweep(path.parent, f"{name}.")
            _check_room(path.parent, name, int(np.prod(todo.shape)))
            with replacing(path.with_suffix(".npy")) as file:
                todo.fill(Path(file.name), _begin(file, todo.shape))
                manifest = _manifest(Path(file.name), source, todo.about)
            _certify(path, manifest)
    except OSError as problem:
        if isinstance(problem, FileNotFoundError) or "LIFELONG_CACHE" in str(problem):
            raise
        raise OSError(f"cannot keep {name} in {path.parent} ({problem}): make room, or point LIFELONG_CACHE at a "
                      f"folder that can be written to") from problem
    again = _stored(path, source)
    if again is None:
        raise OSError(f"{path}.npy was changed while it was written: do it again")
    return again


def _begin(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Writes the header of an array and allocates room for the rest; returns the offset of the rest.

    If the disk became full later, the process would end without a message, because the file is mapped into memory.
    """
    np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.flush()
    begin = file.tell()
    size = begin + int(np.prod(shape))
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except (AttributeError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        file.truncate(size)  # the system or the file system has no such call
    return begin


def _home() -> Path:
    named = os.environ.get("LIFELONG_CACHE")
    return Path(named).expanduser() if named else _user_cache() / "arrays"


def _check_room(home: Path, name: str, needed: int) -> None:
    free = shutil.disk_usage(home).free
    if free < needed + _PORTION:
        raise OSError(f"{name} needs {needed + _PORTION:,} bytes in the cache folder {home}, where {free:,} are free: "
                      f"make room, or point LIFELONG_CACHE at another folder")


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lifelong"


def _first(root: Path, places: Sequence[str]) -> Path | None:
    return next((root / place for place in places if (root / place).exists()), None)


def _stored(path: Path, source: str) -> tuple[np.ndarray, Mapping[str, Any]] | None:
    """The array stored at `path` and the facts about it; None if it is missing, damaged, or of another source.

    Checking all of 1.3 GB would take most of a second at every start, and has to read the disk. A file with unchanged
    size and time is therefore checked in four random portions of 16 MiB, so that damage is found sooner or later. A
    file that was copied or touched is checked completely.
    """
    try:
        manifest = json.loads(path.with_suffix(".json").read_text())
        # Mapped copy-on-write, because torch warns of read-only arrays.
        array: np.ndarray = np.load(path.with_suffix(".npy"), mmap_mode="c", allow_pickle=False)
        if manifest["source"] != source or manifest["shape"] != list(array.shape) or \
                manifest["dtype"] != str(array.dtype):
            return None
        known, portions = manifest["sha256"], list(range(len(manifest["sha256"])))
        if manifest["time"] == path.with_suffix(".npy").stat().st_mtime_ns:
            portions = random.Random().sample(portions, min(4, len(portions)))  # not the global generator
        sound = len(known) == _portions(array) and all(
            made == known[i] for i, made in zip(
                portions, _digests(path.with_suffix(".npy"), array, portions), strict=True))
        return (array, manifest["about"]) if sound else None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _keep(path: Path, source: str, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path.with_suffix(".npy")) as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        manifest = _manifest(Path(file.name), source, {})
    _certify(path, manifest)


def _manifest(file: Path, source: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """The source, shape, type, facts and checksums of an array.

    They are computed from the file written here before it is moved into place, because another process may replace it
    afterwards.
    """
    array = np.load(file, mmap_mode="r", allow_pickle=False)
    return {"source": source, "shape": list(array.shape), "dtype": str(array.dtype), "about": about,
            "sha256": list(_digests(file, array, range(_portions(array))))}


def _certify(path: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, last: an array without a manifest, or with an older one, is ignored."""
    content = {**manifest, "time": path.with_suffix(".npy").stat().st_mtime_ns}
    with replacing(path.with_suffix(".json")) as file:
        file.write(json.dumps(content, indent=1).encode())


def _portions(array: np.ndarray) -> int:
    return -(-array.nbytes // _PORTION)


def _digests(kept: Path, array: np.ndarray, portions: Iterable[int]) -> Iterator[str]:
    """The checksums of some portions of a stored array; read, not mapped, because mapped pages count as used memory."""
    begin = kept.stat().st_size - array.nbytes
    with kept.open("rb") as file:
        for portion in portions:
            file.seek(begin + portion * _PORTION)
            yield hashlib.sha256(file.read(min(_PORTION, array.nbytes - portion * _PORTION))).hexdigest()
