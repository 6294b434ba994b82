"""Few-shot evaluations in a store: a file each, named by what was asked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifelong.store.files import StoreError, write
from lifelong.store.records import digest

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
