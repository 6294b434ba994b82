"""Files of a store: each is written whole, and a failure names its path and the way out."""

from __future__ import annotations

from pathlib import Path

from lifelong import files


class StoreError(Exception):
    """A store that cannot be used, or a damaged run in it; the sentence names the path and the way out."""


def write(path: Path, data: bytes) -> None:
    """Puts a whole file in place, and makes its folder: after a crash there is the old file or the new one.

    Raises:
        StoreError: where the disk is full or the folder cannot be written.
    """
    write_all([(path, data)])


def write_all(contents: list[tuple[Path, bytes]]) -> None:
    """Puts several files of one folder in place together, and makes the folder (see `lifelong.files.write_all`).

    Raises:
        StoreError: where the disk is full or the folder cannot be written.
    """
    path = contents[0][0]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_all(contents)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another folder as the store, or make "
                         "room") from error
