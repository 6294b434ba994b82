"""Every sum against each of its parts, paired by seed: where it helps, where it does not, where seeds do not tell."""

import sys
from pathlib import Path

import numpy as np

from lifelong.metrics import average_accuracy, forgetting, holm, mean_interval, paired_difference
from lifelong.store import Run, runs


def shown(values: np.ndarray) -> str:
    mean, half = mean_interval(100 * values)
    return f"{mean:.1f} ± {half:.1f}"


def compared(found: dict[str, Run]) -> None:
    print("| strategy | average accuracy | forgetting |\n|---|---:|---:|")
    for name, run in found.items():
        if run.about["status"] == "diverged":
            print(f"| {name} | diverged: {run.about['note']} | |")
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
    every = runs(store)[0]
    print("# Sums against their parts\n\nMade by `sh reports/sums/run.sh`; the strategies' default hyper-parameters. "
          "Percent; ± is half a 95 % t interval over seeds, of differences paired by seed; p is for all pairs of a "
          "stream together.")
    for stream in sorted({run.spec["stream"] for run in every}):
        found = {run.spec["strategy"]: run for run in every if run.spec["stream"] == stream}
        one = next(iter(found.values()))
        print(f"\n## {stream}, {one.spec['seeds']} seeds, commit {one.about['commit']}, {one.about['device']}, torch "
              f"{one.about['torch']}\n")
        compared(found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
