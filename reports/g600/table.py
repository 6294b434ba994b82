"""Chooses heads on validation characters, and prints accuracies: `table.py best STORE START`, `table.py table
STORE`."""

import re
import sys
from pathlib import Path

import numpy as np
import scipy.stats

from lifelong.start import load
from lifelong.store import Run, runs


def final(run: Run) -> np.ndarray:
    """Percent of all test drawings that are told after all classes, by seed; a task weighs as its number of classes."""
    sizes = np.diff([0, *run.spec["stream_options"]["lengths"]])
    return 100 * run.accuracy[:, -1] @ sizes / sizes.sum()


def found(folder: Path) -> dict[str, list[Run]]:
    """Runs by start, the best first."""
    kept: dict[str, list[Run]] = {}
    for run in runs(folder)[0]:
        kept.setdefault(file(run).stem, []).append(run)
    return {name: sorted(own, key=lambda run: -final(run).mean()) for name, own in kept.items()}


def file(run: Run) -> Path:
    """The start's."""
    name = re.search(r"file='([^']+)'", run.spec["strategy"])
    assert name is not None
    return Path(name[1])


def said(run: Run) -> str:
    """Mean and half width of the 95 % t interval over seeds."""
    values = final(run)
    half = scipy.stats.sem(values) * scipy.stats.t.ppf(0.975, len(values) - 1) if len(values) > 1 else float("nan")
    return f"{values.mean():.1f} ± {half:.1f}"


def head(run: Run) -> str:
    """The expression without the start's file."""
    return re.sub(r"file='[^']+'(, )?", "", run.spec["strategy"]).replace("()", "")


def table(store: Path) -> None:
    """Both tables, and how each start was learned."""
    for part, title in (("search", "200 validation characters"), ("test", "600 evaluation characters")):
        print(f"\n| start | head | {title} | seeds |\n| --- | --- | ---: | ---: |")
        for name, own in found(store / part).items():
            for run in own:
                print(f"| {name} | `{head(run)}` | {said(run)} | {len(final(run))} |")
    print("\n| start | learned by | on | steps | seconds | parameters | processor | commit |\n|" + " --- |" * 8)
    for name, own in found(store / "test").items():
        about = load(file(own[0])).about
        place = f"{about['environment']['processor']}, {about['environment']['threads']} thread"
        print(f"| {name} | `{about['strategy']}`, {about['precision']} | {about['source']} "
              f"{dict(about['source_options'])} | {about['steps']} | {about.get('seconds', 0):.0f} | "
              f"{about['parameters']:,} | {place} | {about['commit']} |")


if __name__ == "__main__":
    if sys.argv[1] == "best":
        print(found(Path(sys.argv[2]) / "search")[sys.argv[3]][0].spec["strategy"])
    else:
        table(Path(sys.argv[2]))
