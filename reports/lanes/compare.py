"""Prints how far each lane of a stack is from its run alone, and the time of the stack beside the runs'."""

import sys
from pathlib import Path

import numpy as np

from lifelong.store import runs


def main(stack: Path, alone: Path) -> None:
    together = {run.spec["strategy"]: run for run in runs(stack)[0]}
    apart = {run.spec["strategy"]: run for run in runs(alone)[0]}
    print("| strategy | status | largest difference of an accuracy | of a mean training loss | seconds alone |")
    print("|---|---|---:|---:|---:|")
    for name, run in apart.items():
        mate = together[name]
        accuracy = np.nanmax(np.abs(run.accuracy - mate.accuracy))
        loss = np.nanmax(np.abs(run.logs["loss"] - mate.logs["loss"]))
        print(f"| `{name}` | {run.about['status']} | {accuracy:.2g} | {loss:.2g} | {run.about['seconds']:.1f} |")
    first = next(iter(together.values()))
    total = sum(run.about["seconds"] for run in apart.values())
    print(f"\nOne stack of {first.about['lanes']} lanes: {first.about['seconds']:.1f} s; the runs one after another: "
          f"{total:.1f} s; ratio {total / first.about['seconds']:.2f}. {first.about['processor']}, "
          f"{first.about['threads']} threads, torch {first.about['torch']}, commit {first.about['commit']}, "
          f"{first.spec['dtype']}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
