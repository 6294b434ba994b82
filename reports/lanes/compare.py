"""Prints how far each lane of a stack is from its run alone, and the time of the stack beside the runs'."""

import sys
from pathlib import Path

import numpy as np

from lifelong.store import Run, runs


def table(together: dict[str, Run], apart: dict[str, Run]) -> None:
    print("| strategy | alone | in the stack | largest difference of an accuracy | of a mean training loss |")
    print("|---|---|---|---:|---:|")
    for name, run in apart.items():
        mate = together[name]
        same = np.isfinite(run.accuracy) == np.isfinite(mate.accuracy)
        accuracy = np.nanmax(np.abs(run.accuracy - mate.accuracy)) if same.all() else np.inf
        loss = np.nanmax(np.abs(run.logs["loss"] - mate.logs["loss"]))
        fate = ["same steps" if run.about["note"] == mate.about["note"] else "other steps"] * bool(run.about["note"])
        print(f"| `{name}` | {run.about['status']} | {', '.join([mate.about['status'], *fate])} | {accuracy:.2g} | "
              f"{loss:.2g} |")


def main(store: Path) -> None:
    for dtype in ("float64", "float32"):
        together = {run.spec["strategy"]: run for run in runs(store / f"stack-{dtype}")[0]}
        apart = {run.spec["strategy"]: run for run in runs(store / f"alone-{dtype}")[0]}
        first = next(iter(together.values()))
        total = sum(run.about["seconds"] for run in apart.values())
        print(f"\n{dtype}: one stack of {first.about['lanes']} lanes {first.about['seconds']:.1f} s; the runs one "
              f"after another {total:.1f} s; ratio {total / first.about['seconds']:.2f}. {first.about['processor']}, "
              f"{first.about['threads']} threads, torch {first.about['torch']}, commit {first.about['commit']}.\n")
        table(together, apart)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
