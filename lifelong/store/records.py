"""The runs in a store: one folder per run, named by the digest of its spec. There is no other index."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.files import sweep
from lifelong.spec.run import digest as digest
from lifelong.store.files import StoreError, write, write_all

LARGEST = 2**31  # an accuracy.npz may unpack to at most this many bytes


@dataclass(frozen=True)
class Run:
    """A finished run: its specification and its measurements.

    Attributes:
        spec: the JSON values of a `lifelong.spec.run.Spec`, from which the run can be repeated.
        accuracy: [S, 1 + T, T]; row 0 is the untrained learner, row t the learner after task t; NaN was not measured.
            The array is dense even if little was measured, so that every metric is one formula on one array. Zeros and
            NaN compress well on disk; in memory 5 seeds of 1,000 tasks take 40 MB, and `LARGEST` is the limit.
        about: how the run went: status, device, versions, seconds and more, JSON values.
        logs: further arrays by name, for example `accuracy_task` with the shape of `accuracy`.
    """

    spec: Mapping[str, Any]
    accuracy: np.ndarray
    about: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def stream(self) -> str:
        """The name of the stream, with its version."""
        return stream_name(self.spec)


def stream_name(spec: Mapping[str, Any]) -> str:
    """The name, with its version, of the stream of a spec; in format 1 `stream` was that name."""
    return str(spec.get("stream_name") or spec.get("stream"))


def folder(root: Path, spec: Mapping[str, Any]) -> Path:
    """Where the run of `spec` is kept: stream, strategy, digest; only the digest identifies it."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{stream_name(spec)}--{spec['strategy']}"[:80]).strip("-.")
    return root / f"{words}--{digest(spec)}"


def save(root: Path, run: Run) -> Path:
    """Writes a run and returns its folder; run.json is written last, so a folder with it is complete.

    Raises:
        StoreError: the folder cannot be written.
    """
    place = folder(root, run.spec)
    sweep(place)
    arrays = io.BytesIO()
    np.savez_compressed(arrays, allow_pickle=False, accuracy=run.accuracy, **run.logs)
    about = dict(run.about) | {"sha256": hashlib.sha256(arrays.getvalue()).hexdigest()}
    write_all([(place / "accuracy.npz", arrays.getvalue()), (place / "run.json", _written(run.spec, about))])
    with contextlib.suppress(OSError):
        (place / "error.txt").unlink()
    return place


def _written(spec: Mapping[str, Any], about: Mapping[str, Any]) -> bytes:
    """The content of run.json. Its digest of `about` completes what the name of the folder says of the spec."""
    record = {"spec": spec, "about": about, "about_digest": digest(about)}
    return json.dumps(record, indent=2, allow_nan=False).encode() + b"\n"


def load(place: Path) -> Run:
    """The run in a folder.

    Raises:
        StoreError: the run is damaged; the message says how.
    """
    def damaged(why: str) -> StoreError:
        return StoreError(f"the run in {place} is damaged ({why}); it was not changed: move it away to run it again")

    try:
        record = json.loads((place / "run.json").read_bytes())
        spec, about = record["spec"], record["about"]
        data = (place / "accuracy.npz").read_bytes()
        named = place.name.endswith(digest(spec))
        # Records of format 1 have no digest of `about`.
        known = spec.get("format", 1) == 1 or record["about_digest"] == digest(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(f"{type(error).__name__}: {error}") from None
    if not isinstance(spec, dict) or not isinstance(about, dict) or not named:
        raise damaged("run.json does not describe the run that the folder is named after")
    if not known:
        raise damaged("what run.json says about the run is not what was written")
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


def seeds(run: Run) -> list[int]:
    """The seeds of a run, one for each of `accuracy`: 0 to S-1 unless its spec lists others."""
    listed = run.spec.get("seeds")
    return list(listed) if isinstance(listed, Sequence) else list(range(len(run.accuracy)))


def find(root: Path, spec: Mapping[str, Any]) -> Run | None:
    """The finished run of `spec`, or None if the store does not have it.

    Raises:
        StoreError: the run is damaged.
    """
    place = folder(root, spec)
    return load(place) if (place / "run.json").exists() else None


def note(run: Run, **more: Any) -> Run:
    """The run with `more` added to `about`, which is also written to its folder if it has one."""
    if "folder" not in run.about:
        return replace(run, about={**run.about, **more})
    place = Path(run.about["folder"])
    record = json.loads((place / "run.json").read_bytes())
    write(place / "run.json", _written(record["spec"], record["about"] | more))
    return load(place)


def runs(root: Path) -> tuple[list[Run], list[str]]:
    """All finished runs of a store, sorted by folder name, and one sentence about each damaged run."""
    found, problems = [], []
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if re.search(r"--[0-9a-f]{16}$", place.name) and (place / "run.json").exists():
            try:
                found.append(load(place))
            except StoreError as error:
                problems.append(str(error))
    return found, problems
