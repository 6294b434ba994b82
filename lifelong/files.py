"""Whole files, and locks: what is on the disk after a crash, and which process may change it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def write(path: Path, data: bytes, *, sync: bool = True) -> Path:
    """The path of a file that now holds `data`: after a crash at any moment it is the old file or the new one.

    Args:
        path: in a folder that exists.
        data: the whole content.
        sync: whether the data is on the disk when this returns. Without, a crash of the machine (not one of the
            process) may lose it, which is enough for what can be made again.

    Raises:
        OSError: where the file cannot be written; the old file is then unchanged.
    """
    write_all([(path, data)], sync=sync)
    return path


def write_all(files: Sequence[tuple[Path, bytes]], *, sync: bool = True) -> None:
    """Replaces several files of one folder together, the last of `files` as the last.

    All of them are on the disk under temporary names before the first is renamed. After a crash, either the last file
    is missing, or all files are the old ones, or all are the new ones.

    Args:
        files: paths in one folder that exists, each with its content.
        sync: see `write`.

    Raises:
        OSError: where a file cannot be written.
    """
    temporary = {path: _temporary(path) for path, _ in files}
    try:
        for path, data in files:
            with open(temporary[path], "xb") as file:
                file.write(data)
                _finish(file, sync)
        for path, _ in files[1:]:
            path.unlink(missing_ok=True)
        for path, _ in files:
            os.replace(temporary[path], path)
        if sync:
            _sync_folder(files[0][0].parent)
    finally:
        for leftover in temporary.values():
            with suppress(OSError):
                leftover.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write, which becomes `path` when the block ends, and goes where the block or writing fails.

    Raises:
        OSError: where the file cannot be written; the old file is then unchanged.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            _finish(file, True)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def sweep(folder: Path, name: str = "") -> None:
    """Removes the temporary files that killed processes left in `folder`, of files whose names begin with `name`.

    The caller makes sure, for example by a lock, that no other process is writing these files.
    """
    for leftover in folder.glob(f".{name}*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def lock(path: Path) -> BaseFileLock:
    """A lock that one process at a time holds: `with lock(path): ...` waits for it, `acquire(blocking=False)` does not.

    The lock is the operating system's lock on the file `path`, not the existence of that file, which is left where it
    is and whose content and times mean nothing. So it is released when the process ends in any way, kill -9 included.
    It belongs to the process that took it and not to its forks.

    On a local disk it holds between all processes of the machine. On a network file system it holds between machines
    if that file system passes locks on to its server, as NFS version 4 does and as a mount with `nolock` or
    `local_lock` does not; then each machine has a lock of its own. On a file system without locks the existence of the
    file takes the place of the lock, with a warning, and a process that was killed may have to be waited for.

    Raises:
        TimeoutError: by `acquire(blocking=False)`, where another holds it.
        OSError: by `acquire`, where the file cannot be made or the file system refuses to lock it.
    """
    from filelock import FileLock

    return FileLock(path, mode=0o666)  # whoever may write to the folder may lock


def _temporary(path: Path) -> Path:
    """Another name for each process and machine that writes the same file."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _finish(file: IO[bytes], sync: bool) -> None:
    file.flush()
    if sync:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Puts renamed entries on the disk, on systems where a folder can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
