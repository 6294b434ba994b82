"""Child processes that decode pictures: one per core, with limits on memory and time, and a progress bar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import lifelong.progress
from lifelong.data.pictures.decoding import Job, Place, called, write

FEW = 256  # pictures that are decoded faster than a process starts
_MOST = 16
# The path is an argument, because the package need not be on the path of a new process.
_BEGIN = "import sys; sys.path.insert(0, sys.argv[1]); from lifelong.data.pictures.decoding import main; main()"


def describe(title: str, places: Sequence[Place], kind: str) -> list[Any]:
    """The result of `pictures.decoding.describe`, computed in a child process.

    Raises:
        ValueError: a table is refused or cannot be read.
    """
    return _run(title, 0, [_bounded({"task": "describe", "places": list(places), "kind": kind}, places, 0)])[0]


def decode(title: str, file: Path, offset: int, shape: tuple[int, ...], jobs: Sequence[Job], resize: bool) -> None:
    """Decodes the pictures of `jobs` (see `pictures.decoding`) into the array of `shape` [N, 3, side, side] in a file.

    Raises:
        ValueError: a picture cannot be decoded; the message names the first one.
    """
    pictures = [job for job in jobs if job["kind"] == "picture"]
    if len(pictures) == len(jobs) and len(jobs) <= FEW:
        write(np.memmap(file, np.uint8, "r+", offset, shape), jobs, resize, lambda count: None)
        return
    workers = max(1, min(_cores(), _MOST, max(len(pictures) // FEW, len(jobs) - len(pictures))))
    bytes_ = int(np.prod(shape))
    _run(title, shape[0], [
        _bounded({"task": "write", "out": str(file), "offset": offset, "shape": list(shape), "resize": resize,
                  "jobs": (own := list(jobs[i::workers]))}, [job["place"] for job in own], bytes_)
        for i in range(workers)])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bounded(asked: dict[str, Any], places: Sequence[Place], out: int) -> dict[str, Any]:
    """The request with limits on memory and time; the memory depends on the largest file, which may be held twice."""
    largest = max(Path(path).stat().st_size for path, _ in places)
    return asked | {"memory": 3_000_000_000 + 5 * largest + out,
                    "seconds": 120 + len(places) + int(sum(Path(path).stat().st_size for path in
                                                           {path for path, _ in places}) / 1e7)}


def _run(title: str, total: int, requests: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The results of some child processes; if one fails, all are ended."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    home = str(Path(__file__).resolve().parents[3])
    running: list[subprocess.Popen[str]] = []
    answers: list[Any] = [None] * len(requests)
    try:
        with _bar(title, total) as tell:
            for _ in requests:
                running.append(subprocess.Popen(
                    [sys.executable, "-P", "-c", _BEGIN, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL, text=True, env=env, start_new_session=True))
            threads = [threading.Thread(target=_follow, args=(running, i, request, answers, tell), daemon=True)
                       for i, request in enumerate(requests)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    for answer, process, request in zip(answers, running, requests, strict=True):
        if answer is None:
            _failed(request, process.returncode)
    failed = next((answer for answer in answers if "error" in answer), None)
    if failed:
        raise ValueError(failed["error"])
    return [answer["found"] for answer in answers]


def _follow(running: Sequence[subprocess.Popen[str]], i: int, request: Mapping[str, Any], answers: list[Any],
            tell: Callable[[int], None]) -> None:
    """Communicates with one child until it ends; if it fails, the others are ended too."""
    process = running[i]
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            said = json.loads(line)
            tell(said.get("done", 0))
            if "found" in said or "error" in said:
                answers[i] = said
    except (OSError, ValueError):
        pass  # it died; `_failed` reports its exit
    process.wait()
    if answers[i] is None or "error" in answers[i]:
        if answers[i] is not None and answers[i]["error"] == "memory":
            answers[i] = None
        for other in running:
            if other is not process and other.poll() is None:
                answers[running.index(other)] = {"found": None}
                other.kill()


def _failed(request: Mapping[str, Any], code: int) -> None:
    places = request.get("places") or [job["place"] for job in request["jobs"]]
    names = f"{called(places[0])}" + (f" or one of {len(places) - 1} others" if len(places) > 1 else "")
    raise ValueError(f"{names} cannot be read: its reading {f'was ended by signal {-code}' if code < 0 else 'failed'} "
                     f"or took more memory or time than such data needs; get it anew, from a source that you trust")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on a terminal for long work, unless `lifelong.progress.shown` is false."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if total < 2000 or not console.is_terminal or not lifelong.progress.shown:
        yield lambda count: None
        return
    with progress.Progress(progress.TextColumn("{task.description}", markup=False), progress.BarColumn(),
                           progress.MofNCompleteColumn(), progress.TimeElapsedColumn(), progress.TextColumn("left"),
                           progress.TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, advance=count)
