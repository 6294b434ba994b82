"""The few-shot evaluations in a store: one file per evaluation, named by the digest of its question."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifelong.store.files import StoreError, write
from lifelong.store.records import digest

EVALUATIONS = 1  # the format of the files; to be incremented with every change of their content
# The fields of a record that identify the evaluation.
QUESTION = ("format", "start", "sha256", "source", "source_options", "way", "shots", "queries", "episodes", "seed",
            "overlap", "sources")


def evaluation_file(root: Path, record: Mapping[str, Any]) -> Path:
    """The file of an evaluation in the store at `root`; it depends on the `QUESTION` of the record only."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{record['source']}--{record['start']}"[:80]).strip("-.")
    return root / "fewshot" / f"{words}--{digest({name: record[name] for name in QUESTION})}.json"


def keep_evaluation(root: Path, record: Mapping[str, Any]) -> Path:
    """Writes an evaluation with a checksum into its file, and returns the file.

    Raises:
        StoreError: the file cannot be written.
    """
    file = evaluation_file(root, record)
    write(file, json.dumps({**record, "checksum": digest(record)}, indent=2, allow_nan=False).encode() + b"\n")
    return file


def load_evaluation(file: Path) -> dict[str, Any]:
    """The record of the evaluation in a file.

    Raises:
        StoreError: the file is damaged; the message says how.
    """
    try:
        record: dict[str, Any] = json.loads(file.read_bytes())
        named = record["format"] == EVALUATIONS and evaluation_file(Path(), record).name == file.name
        whole = record.pop("checksum") == digest(record) and named
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"the few-shot evaluation in {file} is damaged ({type(error).__name__}: {error}); it was not "
                         "changed: move it away to measure it again") from None
    if not whole:
        raise StoreError(f"the few-shot evaluation in {file} is damaged (its content does not match its name and "
                         "checksum); it was not changed: move it away to measure it again")
    return record


def evaluations(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All few-shot evaluations of a store, sorted by file name, and one sentence about each damaged file."""
    found, problems = [], []
    for file in sorted((root / "fewshot").glob("*.json")):
        try:
            found.append(load_evaluation(file))
        except StoreError as error:
            problems.append(str(error))
    return found, problems
