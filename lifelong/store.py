"""Where runs are kept: a folder per run, named by its spec; the folders are the truth."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 2**31  # bytes an accuracy.npz may unpack to


class StoreError(Exception):
    """A store that cannot be used, or a damaged run in it; the sentence names the path and the way out."""


class Busy(StoreError):
    """Another process is training the same."""


@dataclass(frozen=True)
class Run:
    """What was asked for and what was measured.

    Attributes:
        spec: JSON values, enough to do the run again.
        accuracy: [S, 1 + T, T]; row 0 is the untrained learner, row t the learner after task t; NaN = not measured.
        about: how it went: status, device, versions, seconds.
        logs: further arrays, for example `accuracy_task` of the same shape.
    """

    spec: Mapping[str, Any]
    accuracy: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, np.ndarray] = field(default_factory=dict)


def digest(spec: Any) -> str:
    """Sixteen hexadecimal digits that identify a spec, whatever the order of its keys."""
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(root: Path, spec: Mapping[str, Any]) -> Path:
    """Where the run of `spec` is kept: stream, strategy, digest; only the digest identifies it."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{spec['stream']}--{spec['strategy']}"[:80]).strip("-.")
    return root / f"{words}--{digest(spec)}"


def write(path: Path, data: bytes) -> None:
    """Puts a whole file in place: after a crash at any moment there is the old one or the new one.

    Raises:
        StoreError: where the disk is full or the folder cannot be written.
    """
    _write([(path, data)])


def _write(files: list[tuple[Path, bytes]]) -> None:
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


def save(root: Path, run: Run) -> Path:
    """Writes a run's folder; run.json comes last, so that a run is there whole or not at all."""
    place = folder(root, run.spec)
    for leftover in place.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, accuracy=run.accuracy, **run.logs)
    about = dict(run.about) | {"sha256": hashlib.sha256(arrays.getvalue()).hexdigest()}
    text = json.dumps({"spec": run.spec, "about": about}, indent=2, allow_nan=False)
    _write([(place / "accuracy.npz", arrays.getvalue()), (place / "run.json", text.encode() + b"\n")])
    with contextlib.suppress(OSError):
        (place / "error.txt").unlink()
    return place


def load(place: Path) -> Run:
    """The run in a folder.

    Raises:
        StoreError: where it is damaged, with what is wrong.
    """
    def damaged(why: str) -> StoreError:
        return StoreError(f"the run in {place} is damaged ({why}); it is left as it is: move it away to run it again")

    try:
        record = json.loads((place / "run.json").read_bytes())
        spec, about = record["spec"], record["about"]
        data = (place / "accuracy.npz").read_bytes()
        named = place.name.endswith(digest(spec))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from None
    if not isinstance(spec, dict) or not isinstance(about, dict) or not named:
        raise damaged("run.json does not describe the run that the folder is named for")
    if about.get("status") not in ("done", "diverged"):
        raise damaged("run.json does not say how the run ended")
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise damaged("accuracy.npz is not the file that was written")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
                raise damaged("accuracy.npz unpacks to more than 2 GiB")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            logs = {name: arrays[name] for name in arrays.files}
        accuracy = logs.pop("accuracy")
    except (ValueError, KeyError, TypeError, MemoryError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(f"accuracy.npz: {error}") from None
    real = np.issubdtype(accuracy.dtype, np.floating)
    if not real or accuracy.ndim != 3 or accuracy.shape[1] != accuracy.shape[2] + 1:
        raise damaged(f"accuracy must be [S, 1 + T, T], got {list(accuracy.shape)}")
    return Run(spec, accuracy, about | {"folder": str(place)}, logs)


def find(root: Path, spec: Mapping[str, Any]) -> Run | None:
    """The finished run of `spec`, or None; StoreError where it is there but damaged."""
    place = folder(root, spec)
    return load(place) if (place / "run.json").exists() else None


def note(run: Run, **more: Any) -> Run:
    """The same run with `more` in its record, on the disk as well where it is kept there."""
    if "folder" not in run.about:
        return replace(run, about={**run.about, **more})
    place = Path(run.about["folder"])
    record = json.loads((place / "run.json").read_bytes())
    record["about"] |= more
    write(place / "run.json", json.dumps(record, indent=2, allow_nan=False).encode() + b"\n")
    return load(place)


def runs(root: Path) -> tuple[list[Run], list[str]]:
    """All finished runs of a store in the order of their folders' names, and a sentence for each damaged one."""
    found, problems = [], []
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if re.search(r"--[0-9a-f]{16}$", place.name) and (place / "run.json").exists():
            try:
                found.append(load(place))
            except StoreError as error:
                problems.append(str(error))
    return found, problems


# ---- few-shot evaluations: a file each, named by what was asked

EVALUATIONS = 1  # another number whenever what a file holds becomes another
ASKED = ("format", "start", "sha256", "source", "source_options", "way", "shots", "queries", "episodes", "seed",
         "overlap", "sources")


def evaluation_file(root: Path, record: Mapping[str, Any]) -> Path:
    """Where the evaluation is kept that was asked as `record` says, by its `ASKED` alone."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{record['source']}--{record['start']}"[:80]).strip("-.")
    return root / "fewshot" / f"{words}--{digest({name: record[name] for name in ASKED})}.json"


def keep_evaluation(root: Path, record: Mapping[str, Any]) -> Path:
    """Writes an evaluation's file, with its checksum."""
    file = evaluation_file(root, record)
    write(file, json.dumps({**record, "checksum": digest(record)}, indent=2, allow_nan=False).encode() + b"\n")
    return file


def load_evaluation(file: Path) -> dict[str, Any]:
    """The evaluation in a file.

    Raises:
        StoreError: where it is damaged, with what is wrong.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        named = record["format"] == EVALUATIONS and evaluation_file(Path(), record).name == file.name
        whole = record.pop("checksum") == digest(record) and named
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"the few-shot evaluation in {file} is damaged ({type(error).__name__}: {error}); it is left "
                         "as it is: move it away to measure it again") from None
    if not whole:
        raise StoreError(f"the few-shot evaluation in {file} is damaged (it is not what this version writes under "
                         "this name); it is left as it is: move it away to measure it again")
    return record


def evaluations(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All few-shot evaluations of a store in the order of their files' names, and a sentence for each damaged one."""
    found, problems = [], []
    for file in sorted((root / "fewshot").glob("*.json")):
        try:
            found.append(load_evaluation(file))
        except StoreError as error:
            problems.append(str(error))
    return found, problems


# ---- what is being trained


_CHECKPOINT = re.compile(r"checkpoint-\d+\.pt")
CHECKPOINTS = 4  # another number whenever what a checkpoint holds becomes another


class Workshop:
    """The folder of a stack in training: which runs it makes, its checkpoints, and a lock."""

    def __init__(self, root: Path, specs: list[Mapping[str, Any]]) -> None:
        self.specs = specs
        self.place = root / ".stacks" / digest(specs)
        self.good: dict[str, str] | None = None  # the newest checkpoint that is known to be whole

    @classmethod
    def all(cls, root: Path) -> list[Workshop]:
        """Those of a store that were begun and not ended."""
        found = []
        for file in sorted((root / ".stacks").glob("*/stack.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                shop = cls(root, json.loads(file.read_bytes())["specs"])
                if shop.place == file.parent:
                    found.append(shop)
        return found

    @contextlib.contextmanager
    def open(self) -> Iterator[Workshop]:
        """Holds the lock, so that one process trains a stack.

        Raises:
            Busy: where another process holds it.
        """
        write(self.place / "stack.json", json.dumps({"specs": self.specs}, allow_nan=False).encode())
        with open(self.place / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Busy(f"another process is training this: {self.place}") from None
            for leftover in self.place.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            try:
                yield self
            finally:
                if not (self.place / "checkpoint.json").exists():
                    self.close()  # nothing to go on from

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Keeps a checkpoint and the one before it; the pointer file holds their sha256."""
        import torch

        plain(checkpoint, "checkpoint")
        buffer = io.BytesIO()
        torch.save({"format": CHECKPOINTS, "content": checkpoint}, buffer)
        data = buffer.getvalue()
        kept = [self.good] if self.good else self._pointer()[0][:1]
        number = max([int(p.stem.split("-")[1]) for p in self.place.glob("checkpoint-*.pt")
                      if _CHECKPOINT.fullmatch(p.name)], default=-1) + 1
        entry = {"file": f"checkpoint-{number}.pt", "sha256": hashlib.sha256(data).hexdigest()}
        write(self.place / entry["file"], data)
        write(self.place / "checkpoint.json", json.dumps([entry, *kept]).encode())
        self.good = entry
        names = {e["file"] for e in [entry, *kept]}
        for old in self.place.glob("checkpoint-*.pt"):
            if old.name not in names:
                old.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The latest whole checkpoint, if any, and a sentence for each that was damaged or of another version."""
        import torch

        entries, problems = self._pointer()
        for i, entry in enumerate(entries):
            file = self.place / entry["file"]
            try:
                data = file.read_bytes()
                if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                    raise ValueError("not the bytes that were written")
                checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
                if checkpoint.get("format") != CHECKPOINTS:
                    return None, [*problems, f"the checkpoint {file} is of another version of lifelong, and this one "
                                             "cannot go on from it; beginning again"]
                self.good = entry
                content: dict[str, Any] = checkpoint["content"]
                return content, problems
            except Exception as error:  # whatever a damaged file makes torch raise
                way = "going back to the one before it" if i + 1 < len(entries) else "beginning again"
                problems.append(f"the checkpoint {file} is damaged ({error}); {way}")
        return None, problems

    def _pointer(self) -> tuple[list[dict[str, str]], list[str]]:
        """The checkpoints, newest first, and a sentence where the file that names them is damaged."""
        file = self.place / "checkpoint.json"
        if not file.exists():
            return [], []
        try:
            entries = [{"file": str(e["file"]), "sha256": str(e["sha256"])} for e in json.loads(file.read_bytes())]
            if not entries or not all(_CHECKPOINT.fullmatch(e["file"]) for e in entries):
                raise ValueError("it names no checkpoint of this folder")
            return entries, []
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return [], [f"{file} is damaged ({error}); beginning again"]

    def close(self) -> None:
        """Removes the folder, once the runs are saved."""
        shutil.rmtree(self.place, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.place.parent.rmdir()


def plain(value: Any, name: str) -> None:
    """Raises TypeError, with the key, for anything in a checkpoint that `weights_only` would refuse to load."""
    import torch

    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{name}: keys must be strings or integers, got {key!r}")
            plain(inner, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            plain(inner, f"{name}[{i}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (str, bytes, int, float, bool, type(None)):
        raise TypeError(f"{name} is a {type(value).__name__}: a checkpoint holds tensors and plain values")
