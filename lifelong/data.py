"""Where raw data is found, and where arrays decoded from it are kept."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np


def folder(data: str | Path | None = None) -> Path:
    """The data folder: `data`, else $LIFELONG_DATA, else `lifelong/data` in the user's cache folder."""
    named = data or os.environ.get("LIFELONG_DATA")
    return Path(named).expanduser() if named else _user_cache() / "data"


def find(what: str, places: Sequence[str], data: str | Path | None, *, source: str,
         download: Callable[[Path], object] | None = None) -> Path:
    """The first of `places` that exists in the data folder; in the default folder, downloaded where it can be.

    Args:
        what: the data, as the error names it.
        places: paths relative to the data folder, in order of preference.
        data: see `folder`.
        source: where the data can be had, as the error names it.
        download: puts the data into the folder it is given. Only called for the default folder: one that the user
            named is never written to.

    Raises:
        FileNotFoundError: where none of the places exists.
    """
    root = folder(data)
    failure: Exception | None = None
    found = _first(root, places)
    if found is None and download is not None and not (data or os.environ.get("LIFELONG_DATA")):
        try:
            root.mkdir(parents=True, exist_ok=True)
            download(root)
        except Exception as problem:  # Whatever a download raises, the way out is the same.
            failure = problem
        found = _first(root, places)
    if found is None:
        tried = f", and downloading it failed: {failure}" if failure else ""
        shown = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        raise FileNotFoundError(f"{what} is not in {root} (looked for {shown}{tried}); get it from {source}, and name "
                                f"its folder with --data or LIFELONG_DATA") from failure
    return found


def members(archive: zipfile.ZipFile, ceiling: int) -> list[zipfile.ZipInfo]:
    """The files in a zip archive, once its names are known to stay inside and its sizes below `ceiling` bytes.

    Raises:
        ValueError: where a name is absolute or climbs with `..`, or the files would unpack to more than `ceiling`.
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
    """A hash of the paths, sizes and times of `files`: another one as soon as a file is exchanged."""
    digest = hashlib.sha256()
    for path in files:
        about = path.stat()
        digest.update(f"{path.resolve()}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def decoded(name: str, source: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """What `decode` returns, decoded once: later calls map the stored array into memory.

    Args:
        name: of the files in the cache folder ($LIFELONG_CACHE, else `lifelong/arrays` in the user's cache folder);
            another name for another decoding.
        source: `fingerprint` of what is decoded. An entry made from anything else, or damaged, is made anew.
        decode: makes the array; called only where the cache has no sound entry.

    Returns:
        The array; writing to it changes neither the file nor other readers' arrays.
    """
    named = os.environ.get("LIFELONG_CACHE")
    home = Path(named).expanduser() if named else _user_cache() / "arrays"
    array = _stored(home / name, source)
    if array is not None:
        return array
    array = decode()
    try:
        _keep(home / name, source, array)
    except OSError as problem:
        warnings.warn(f"cannot keep decoded data in {home} ({problem}), so it is decoded again next time; point "
                      f"LIFELONG_CACHE at a folder that can be written to", stacklevel=2)
        return array
    stored = _stored(home / name, source)
    return array if stored is None else stored


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lifelong"


def _first(root: Path, places: Sequence[str]) -> Path | None:
    return next((root / place for place in places if (root / place).exists()), None)


def _stored(path: Path, source: str) -> np.ndarray | None:
    """The array kept at `path`, or None where it is missing, damaged, or made from another source."""
    try:
        manifest = json.loads(path.with_suffix(".json").read_text())
        # Mapped copy-on-write, because torch warns of arrays that it could not write to.
        array: np.ndarray = np.load(path.with_suffix(".npy"), mmap_mode="c", allow_pickle=False)
        return array if manifest == _manifest(source, array) else None
    except (OSError, ValueError, EOFError):
        return None


def _keep(path: Path, source: str, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path.with_suffix(".npy")) as file:
        np.save(file, array, allow_pickle=False)
    # The manifest last: without it, or with an older one, the array does not count.
    with _replacing(path.with_suffix(".json")) as file:
        file.write(json.dumps(_manifest(source, array), indent=1).encode())


def _manifest(source: str, array: np.ndarray) -> dict[str, Any]:
    content = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return {"source": source, "shape": list(array.shape), "dtype": str(array.dtype), "sha256": content}


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that takes the place of `path` all at once, or not at all where writing fails."""
    handle, made = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is for its maker alone, but a cache folder may be shared.
        Path(made).chmod(0o644)
        os.replace(made, path)
    except BaseException:
        Path(made).unlink(missing_ok=True)
        raise
