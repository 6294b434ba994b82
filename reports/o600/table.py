"""Chooses step sizes by search streams, and prints accuracy by length: `table.py best STORE START test|train`,
`table.py table STORE test|train`."""

import re
import sys
from pathlib import Path

import numpy as np

from lifelong.report import by_length, percent
from lifelong.start import load
from lifelong.store import Run, runs


def found(folder: Path) -> dict[str, dict[float, Run]]:
    """Runs by start and step size."""
    kept: dict[str, dict[float, Run]] = {}
    for run in runs(folder)[0]:
        name = re.search(r"([\w-]+)\.safetensors", run.spec["strategy"])
        if name:
            kept.setdefault(name[1], {})[run.spec["hyper"]["optimizer"]["lr"]] = run
    return kept


def best(tried: dict[float, Run], kind: str) -> dict[int, float]:
    """The step size that is best on the search streams, for each of their lengths."""
    lengths = next(iter(tried.values())).spec["stream_options"]["lengths"]
    means = {lr: np.nan_to_num(by_length(run)[kind].mean(0)) for lr, run in tried.items()}
    return {n: max(means, key=lambda lr: means[lr][i]) for i, n in enumerate(lengths)}


def table(store: Path, kind: str) -> None:
    """Accuracy by length, each with the step size chosen at that length or at the longest that was searched."""
    searched, tested = found(store / "search"), found(store / "test")
    lengths = next(iter(next(iter(tested.values())).values())).spec["stream_options"]["lengths"]
    print(f"| start | | {' | '.join(map(str, lengths))} |\n| --- | --- |{' ---: |' * len(lengths)}")
    for name, own in tested.items():
        chosen = best(searched[name], kind)
        lrs = [chosen.get(n, chosen[max(chosen)]) for n in lengths]
        for what in ("test", "train"):
            cells = [percent(by_length(own[lr])[what][:, i]) for i, lr in enumerate(lrs)]
            print(f"| {name} | {what} | {' | '.join(cells)} |")
        print(f"| {name} | step size | {' | '.join(f'{lr:g}' for lr in lrs)} |")
    print(f"\nStep sizes chosen by {kind} accuracy on the search streams.")
    for name, own in tested.items():
        about, seconds = next(iter(own.values())).about, sum(run.about["seconds"] for run in own.values()) / len(own)
        start = load(store / "starts" / f"{name}.safetensors").about
        print(f"- {name}: {start['strategy']} of {start['model']} on {start['source']} {start['source_options']}, "
              f"{start['steps']} steps in {start['seconds']:.0f} s, loss {start['loss'][0]:.2f} to "
              f"{start['loss'][-1]:.2f}, commit {start['commit']}; {len(next(iter(own.values())).accuracy)} test "
              f"streams, {about['lanes']} lanes in {seconds:.0f} s; {about['device']}, {about['threads']} threads, "
              f"torch {about['torch']}, commit {about['commit']}")


if __name__ == "__main__":
    verb, store = sys.argv[1], Path(sys.argv[2])
    if verb == "best":
        print(sorted(set(best(found(store / "search")[sys.argv[3]], sys.argv[4]).values())))
    else:
        table(store, sys.argv[3])
