"""Whole files: after a crash at any moment there is the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class StoreError(Exception):
    """A store that cannot be used, or a damaged run in it; the sentence names the path and the way out."""


def write(path: Path, data: bytes) -> None:
    """Puts a whole file in place: after a crash at any moment there is the old one or the new one.

    Raises:
        StoreError: where the disk is full or the folder cannot be written.
    """
    write_all([(path, data)])


def write_all(files: list[tuple[Path, bytes]]) -> None:
    """Several files of one folder: all are on the disk under temporary names before the first is renamed."""
    path = files[0][0]
    temporary = {at: at.with_name(f".{at.name}.{os.getpid()}.tmp") for at, _ in files}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for at, data in files:
            with open(temporary[at], "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for at, _ in files[1:]:
            at.unlink(missing_ok=True)  # several files are replaced together or, after a crash, the last is missing
        for at, _ in files:
            os.replace(temporary[at], at)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):
                leftover.unlink()
        raise StoreError(f"cannot write {path}: {error.strerror or error}; choose another folder with --store, or make "
                         "room") from error
