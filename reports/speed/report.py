"""Seconds and memory of `lifelong report` over made-up runs, and the processor's time: `report.py [--runs 200]`."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lifelong.store.records import Run, save

KINDS = ("er(capacity={})", "ewc(strength={})", "er(capacity={0}) + ewc(strength={0})", "si(strength={})",
         "lwf(strength={})")


def made_up(root: Path, stream: int, number: int, seeds: int, tasks: int) -> None:
    """Saves a run whose accuracies fall off after each task, with noise."""
    rng = np.random.default_rng([stream, number])
    after, of = np.arange(tasks + 1)[:, None], np.arange(1, tasks + 1)
    learned = rng.uniform(0.5, 0.95) - rng.uniform(0, 0.5) * (1 - np.exp(-(after - of) / 4))
    a = np.where(after >= of, learned, 0.1) + rng.normal(0, 0.02, (seeds, 1, 1))
    a = a + rng.normal(0, 0.01, a.shape)
    strategy = "finetune" if not number else KINDS[number % len(KINDS)].format(number)
    spec = {"stream": f"made-up-{stream}-v1", "stream_options": {"scenario": "domain", "tasks": tasks}, "seeds": seeds,
            "strategy": strategy, "model": "mlp", "optimizer": "sgd", "hyper": {"strategy": [{"capacity": number}]}}
    about = {"status": "done", "note": "", "seconds": float(rng.uniform(9, 99)), "lanes": seeds, "state_bytes": 10**6}
    save(root, Run(spec, np.clip(a, 0, 1), about, {"steps": np.full((seeds, tasks), 100)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tasks", type=int, default=20)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(asked.runs):
            made_up(Path(folder) / "runs", i % asked.streams, i // asked.streams, asked.seeds, asked.tasks)
        timed = ("import sys, time\nbegun = time.monotonic()\nfrom lifelong import cli\n"
                 "sys.argv = ['lifelong', *sys.argv[1:]]\n"
                 "try:\n    cli.main()\nfinally:\n    print(f'{time.monotonic() - begun:.1f}', file=sys.stderr)")
        done = subprocess.run([sys.executable, "-c", timed, "report", f"{folder}/runs"], capture_output=True, text=True,
                              check=True)
        written = sum(1 for path in (Path(folder) / "runs" / "report").rglob("*") if path.is_file())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{asked.runs} runs of {asked.seeds} seeds and {asked.tasks} tasks on {asked.streams} streams, {written} "
          f"files: {done.stderr.split()[-1]} s, processors {used.ru_utime + used.ru_stime:.1f} s, "
          f"{used.ru_maxrss / 1e6:.2f} GB in the largest of its processes")


if __name__ == "__main__":
    main()
