"""A file is the old one or the new one, and a lock is one process's, whatever ends that process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lifelong import files

HOLDER = """
import os, sys, time
from pathlib import Path
from lifelong.files import lock
held = lock(Path(sys.argv[1]))
held.acquire()
if sys.argv[2] == "forks" and os.fork() == 0:
    if sys.argv[3] == "releases":
        held.release()
        sys.exit()
    os.close(1)
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


def holder(path: Path, *words: str) -> subprocess.Popen[str]:
    """Another process that holds the lock by the time that this returns."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), *words], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Ends it and its forks."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_lock_is_released_by_kill_9(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", "alone", "")
    try:
        with pytest.raises(TimeoutError):
            files.lock(tmp_path / "lock").acquire(blocking=False)
        process.kill()
        process.wait()
        with files.lock(tmp_path / "lock").acquire(blocking=False):
            pass
    finally:
        end(process)


def test_a_fork_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", "forks", "sleeps")
    try:
        process.kill()
        process.wait()
        with files.lock(tmp_path / "lock").acquire(timeout=10):  # the fork may not have run since it was made
            pass
    finally:
        end(process)


def test_a_fork_cannot_release_the_lock_of_its_parent(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock", "forks", "releases")
    try:
        with pytest.raises(TimeoutError):
            files.lock(tmp_path / "lock").acquire(timeout=0.5)
    finally:
        end(process)


def test_the_content_of_a_lock_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("somebody's")
    with files.lock(tmp_path / "lock"):
        pass
    assert (tmp_path / "lock").read_text() == "somebody's"


def test_a_file_is_replaced_when_its_block_ends_and_not_before(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a", b"old")
    with files.replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, kind: type[BaseException]) -> None:
    path = files.write(tmp_path / "a", b"old")
    with pytest.raises(kind), files.replacing(path) as file:
        file.write(b"new")
        raise kind
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_on_the_disk_before_the_first_is_renamed_and_the_last_comes_last(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, replace, sync = [], os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (said.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (said.append(Path(new).name), replace(old, new)))
    files.write_all([(tmp_path / "a", b"1"), (tmp_path / "b", b"2")])
    assert said == ["sync", "sync", "a", "b", "sync"]  # the last is of the folder
    files.write(tmp_path / "c", b"3", sync=False)
    assert said[5:] == ["c"]


def test_what_killed_processes_left_is_swept_by_name(tmp_path: Path) -> None:
    for name in (".a.npy.12.tmp", ".a.json.34.tmp", ".ab.npy.56.tmp", "a.npy", ".a.lock"):
        (tmp_path / name).touch()
    files.sweep(tmp_path, "a.")
    assert {p.name for p in tmp_path.iterdir()} == {".ab.npy.56.tmp", "a.npy", ".a.lock"}


def test_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    files.write(tmp_path / "b", b"")
    with files.replacing(tmp_path / "c"):
        pass
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
