"""Stacks in training: their folders, checkpoints and locks."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lifelong.files import lock, sweep
from lifelong.store.files import StoreError, write
from lifelong.store.records import digest, folder


class Busy(StoreError):
    """Another process is training the same."""


# ---- what is being trained


_CHECKPOINT = re.compile(r"checkpoint-\d+\.pt")
CHECKPOINTS = 5  # another number whenever what a checkpoint holds becomes another


class Workshop:
    """The folder of a stack in training: which runs it makes, its checkpoints, and a lock."""

    def __init__(self, root: Path, specs: list[Mapping[str, Any]]) -> None:
        self.root, self.specs = root, specs
        self.place = root / ".stacks" / digest(specs)
        self.good: dict[str, str] | None = None  # the newest checkpoint that is known to be whole

    @classmethod
    def all(cls, root: Path) -> list[Workshop]:
        """Those of a store that were begun and not ended."""
        found = []
        for file in sorted((root / ".stacks").glob("*/stack.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                specs = json.loads(file.read_bytes())["specs"]
                shop = cls(root, [{"stream": spec["stream"], "strategy": spec["strategy"], **spec} for spec in specs])
                if shop.place == file.parent:
                    found.append(shop)
        return found

    @contextlib.contextmanager
    def open(self) -> Iterator[Workshop]:
        """Holds the lock of the folder, so that one process trains a stack (see `lifelong.files.lock`).

        Raises:
            Busy: where another process holds the lock.
            StoreError: where the folder cannot be written or locked.
        """
        try:
            write(self.place / "stack.json", json.dumps({"specs": self.specs}, allow_nan=False).encode())
        except StoreError:
            if self.root.is_dir() and not self.place.exists():  # it was removed by another process, which has ended it
                raise Busy(f"another process is ending {self.place}") from None
            raise
        try:
            held = lock(self.place / "lock").acquire(blocking=False)
        except TimeoutError:
            raise Busy(f"another process is training this: {self.place}") from None
        except OSError as error:
            raise StoreError(f"cannot lock {self.place}: {error.strerror or error}; choose another folder with "
                             "--store") from error
        with held:
            if not (self.place / "stack.json").exists():  # removed between the two, with the file that is locked
                raise Busy(f"another process is ending {self.place}")
            sweep(self.place)
            try:
                yield self
            finally:
                # The lanes whose runs are not stored yet are trained again beside those whose runs are, for the last
                # digits of a lane depend on how many there are.
                stored = any((folder(self.root, spec) / "run.json").exists() for spec in self.specs)
                if not stored and not (self.place / "checkpoint.json").exists():
                    self.close()  # there is nothing to go on from

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
