"""Every sum against each of its parts, paired by seed: where it helps, where it does not, where seeds do not tell.

`compare.py strategies STORE STREAM` prints what is run, with the strengths that were chosen; `compare.py table STORE`
prints the tables.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lifelong.metrics import average_accuracy, forgetting, holm, mean_interval, paired_difference
from lifelong.store import Run, runs

PLAIN = ("finetune", "er", "derpp", "agem", "dgr")
SUMS = (("er", "ewc"), ("er", "lwf"), ("derpp", "ewc"), ("agem", "si"), ("er", "mas"), ("dgr", "ewc"))


def tuned(store: Path, stream: str) -> dict[str, dict[str, Any]]:
    """What `lifelong tune` chose for each penalty on a stream, by name."""
    files = sorted((store / "tuning").glob(f"{stream}-v*.json"))
    choices = json.loads(files[-1].read_text())["choices"]
    return {choice["asked"].partition("(")[0]: choice for choice in choices}


def strategies(store: Path, stream: str) -> list[str]:
    """The parts and the sums, each penalty with the strength that was chosen."""
    chosen = {name: choice["chosen"]["strategy"] for name, choice in tuned(store, stream).items()}
    return [*PLAIN, *chosen.values(), *(" + ".join(chosen.get(part, part) for part in parts) for parts in SUMS)]


def shown(values: np.ndarray) -> str:
    mean, half = mean_interval(100 * values)
    return f"{mean:.1f} ± {half:.1f}"


def compared(found: dict[str, Run]) -> None:
    """Prints the table of accuracies, and that of differences."""
    print("| strategy | average accuracy | forgetting |\n|---|---:|---:|")
    for name, run in found.items():
        if run.about["status"] == "diverged":
            print(f"| {name} | diverged in {np.isnan(run.accuracy[:, -1]).any(-1).sum()} seeds | |")
        else:
            print(f"| {name} | {shown(average_accuracy(run.accuracy))} | {shown(forgetting(run.accuracy))} |")
    pairs = [(name, part) for name in found if "+" in name for part in name.split(" + ") if part in found]
    tests = [paired_difference(*(100 * average_accuracy(found[n].accuracy) for n in pair)) for pair in pairs]
    adjusted = holm([test.p for test in tests])
    print("\n| sum | against | difference in points | p (sign flips, Holm) | |\n|---|---|---:|---:|---|")
    for (name, part), test, p in zip(pairs, tests, adjusted, strict=True):
        verdict = "no verdict: one diverged" if np.isnan(p) else "the seeds do not tell" if p >= 0.05 else (
            "helps" if test.mean > 0 else "hurts")
        print(f"| {name} | {part} | {test.mean:+.1f} ± {test.half_width:.1f} | {p:.3g} | {verdict} |")


def main(store: Path) -> None:
    """Prints the report."""
    every = runs(store)[0]
    print("# Sums against their parts\n\nMade by `sh reports/sums/run.sh`. Percent; ± is half a 95 % t interval over "
          "seeds, of differences paired by seed; p is for all pairs of a stream together.")
    for stream in sorted({run.spec["stream"] for run in every}):
        choices = tuned(store, stream.rpartition("-v")[0])
        named = strategies(store, stream.rpartition("-v")[0])
        found = {run.spec["strategy"]: run for run in every if run.spec["stream"] == stream}
        found = {name: found[name] for name in named}
        made = [" and ".join(sorted({str(run.about[what]) for run in found.values()}))
                for what in ("commit", "device", "torch")]
        seeds = next(iter(found.values())).spec["seeds"]
        print(f"\n## {stream}, {seeds} seeds, commit {made[0]}, {made[1]}, torch {made[2]}\n\n"
              "Strengths, chosen on streams of three other seeds by examples held out:\n")
        for name, choice in choices.items():
            print(f"- {name}: {choice['verdict']} ({choice['cost_s']:.0f} s)")
        print()
        compared(found)


if __name__ == "__main__":
    if sys.argv[1] == "strategies":
        print("\n".join(strategies(Path(sys.argv[2]), sys.argv[3])))
    else:
        main(Path(sys.argv[2]))
