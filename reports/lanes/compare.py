"""Runs a grid as one stack and one by one; prints how far each lane is from its run alone, and both times."""

import sys
from pathlib import Path

import numpy as np

from lifelong.cli import app
from lifelong.store.records import Run, runs

STRENGTHS = (0, 1, 10, 100, 1000)


def go(store: Path, strength: object, dtype: str, options: list[str]) -> None:
    """`lifelong run`, in this process."""
    code = app(["run", "rotated-digits", f"er(capacity=200) + ewc(strength={strength})", "--seeds", "5", "--store",
                str(store), "--dtype", dtype, *options], standalone_mode=False)
    if code not in (None, 0, 1):  # a diverged run ends with 1
        sys.exit(code)


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


def main(store: Path, options: list[str]) -> None:
    for dtype in ("float64", "float32"):
        go(store / f"stack-{dtype}", list(STRENGTHS), dtype, options)
        for strength in STRENGTHS:
            go(store / f"alone-{dtype}", strength, dtype, options)
        together = {run.spec["strategy"]: run for run in runs(store / f"stack-{dtype}")[0]}
        apart = {run.spec["strategy"]: run for run in runs(store / f"alone-{dtype}")[0]}
        first = next(iter(together.values()))
        total = sum(run.about["seconds"] for run in apart.values())
        print(f"\n{dtype}: one stack of {first.about['lanes']} lanes {first.about['seconds']:.1f} s; the runs one "
              f"after another {total:.1f} s; ratio {total / first.about['seconds']:.2f}. {first.about['processor']}, "
              f"{first.about['threads']} threads, torch {first.about['torch']}, commit {first.about['commit']}.\n")
        table(together, apart)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
