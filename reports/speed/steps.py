"""The price of a step in two versions of lifelong, side by side: `python reports/speed/steps.py --other OTHER_PYTHON`.

OTHER_PYTHON is the interpreter of an environment in which the other version is installed. The two versions take turns
at blocks of steps, one thread each. The ratio is the median over pairs of neighbouring blocks of their processor times,
so that a machine whose speed changes slows both sides of a pair. Pin the command to one core where other work runs
beside it (`taskset -c 0 python ...`).
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

METHODS = ("finetune", "er(capacity=200)", "ewc(strength=10)", "er(capacity=200) + ewc(strength=10)", "si", "mas",
           "der(capacity=200)", "derpp(capacity=200)", "lwf", "er(capacity=200) + lwf",
           "agem(capacity=200,reference=64)", "er(capacity=200,combine='mean')",
           "er_ace(capacity=200)", "mir(capacity=200)", "packnet", "xdg")
STREAM = "permuted-digits(tasks=2,scenario='{scenario}')"


def first_of(*names: str) -> Any:
    """The first module of these that the installed version has."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(names[0])


def work(method: str, seeds: int, batch: int) -> None:
    """Prints the processor time of a block of steps for each line that comes in."""
    import torch

    torch.set_num_threads(1)
    schedule = first_of("lifelong.learning.schedule", "lifelong.schedule")
    lifelong = importlib.import_module("lifelong")
    scenario = "task" if method in ("packnet", "xdg") else "domain"
    experiment = lifelong.prepare(STREAM.format(scenario=scenario), [method],
                                  lifelong.Options(seeds=seeds, batch_size=batch))
    learners = getattr(experiment, "learners", experiment)  # of a version before 0.2, the experiment itself
    lanes = learners.lanes(list(getattr(experiment, "settings", None) or experiment.specs))
    state, steps = lanes.init(), []
    for task in range(2):  # the first task is learned and ended, so that memories are full and penalties act
        todo = schedule.plan(lanes.stream, lanes.seeds, task, lanes.learner.data, schedule.Budget(batch, 1))
        steps = [b for _, b in schedule.batches(lanes, todo, task, 0)]
        for one in steps if task == 0 else ():
            state, _ = lanes.observe(state, one)
        if task == 0:
            state = lanes.end_task(state, schedule.whole_task(lanes, task))
    print("ready", flush=True)
    for line in sys.stdin:
        begun = time.process_time()
        for k in range(int(line)):
            state, _ = lanes.observe(state, steps[k % len(steps)])
        print((time.process_time() - begun) / int(line), flush=True)


def measured(pythons: list[str], method: str, seeds: int, batch: int, blocks: int, size: int) -> list[list[float]]:
    """For each interpreter the seconds a step of each block."""
    workers = [subprocess.Popen([python, __file__, "--work", method, "--seeds", str(seeds), "--batch", str(batch)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for python in pythons]

    def ask(worker: subprocess.Popen[str], steps: int) -> float:
        assert worker.stdin
        assert worker.stdout
        worker.stdin.write(f"{steps}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    for worker in workers:
        assert worker.stdout
        while worker.stdout.readline().strip() != "ready":
            if worker.poll() is not None:
                raise RuntimeError(f"{method} cannot be measured")
        ask(worker, 5)
    found: list[list[float]] = [[] for _ in workers]
    for block in range(blocks):
        for i in (range(len(workers)) if block % 2 else reversed(range(len(workers)))):
            found[i].append(ask(workers[i], size))
    for worker in workers:
        worker.communicate()
    return found


def main() -> None:
    """Prints a table, and writes it to --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other")
    parser.add_argument("--work")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 10])
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--size", type=int, default=20, help="steps of a block")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.work:
        return work(given.work, given.seeds[0], given.batch)
    lines = ["| method | lanes | this, us a step | other, us a step | this / other | quartiles |",
             "|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for seeds in given.seeds:
        for method in given.methods:
            ours, theirs = measured([sys.executable, given.other], method, seeds, given.batch, given.blocks, given.size)
            middle = [1e6 * statistics.median(v) for v in (ours, theirs)]
            low, ratio, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
            lines.append(f"| {method} | {seeds} | {middle[0]:.0f} | {middle[1]:.0f} | {ratio:.2f} | "
                         f"{low:.2f} to {high:.2f} |")
            print(lines[-1], flush=True)
    if given.out:
        given.out.write_text("\n".join(lines) + "\n")
    return None


if __name__ == "__main__":
    main()
