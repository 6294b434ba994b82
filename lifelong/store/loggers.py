"""Loggers of finished runs: CSV, TensorBoard and Weights & Biases. A logger that fails never affects a run.

Each logger is a separate process that receives the folders of finished runs. A logger that is not installed, raises,
crashes or hangs causes a warning. Training does not wait for it and shares no memory, random numbers or threads with
it.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lifelong import metrics, store
from lifelong.spec.run import one_of
from lifelong.store.records import Run

PATIENCE = 60.0  # seconds that a logger may take after training has ended


class Point(NamedTuple):
    """One measured value of a seed, after `task` complete tasks and `step` steps of the next one."""

    seed: int
    task: int
    step: int
    name: str
    value: float


def points(run: Run) -> Iterator[Point]:
    """All measurements of a run: accuracies after and within tasks, average accuracies, and the loss of each task.

    `accuracy/1` is the accuracy on the first task. Task 0 is the untrained learner. Values that were not measured are
    left out or NaN.
    """
    accuracies = {"accuracy": run.accuracy} | {k: v for k, v in run.logs.items() if k.startswith("accuracy_")}
    for seed in range(len(run.accuracy)):
        for name, values in accuracies.items():
            for task, tested in np.argwhere(np.isfinite(values[seed])).tolist():
                yield Point(seed, task, 0, f"{name}/{tested + 1}", float(values[seed, task, tested]))
            for task, value in enumerate(metrics.average_curve(values[seed])):
                yield Point(seed, task + 1, 0, f"average_{name}", float(value))
        for task, value in enumerate(run.logs.get("loss", np.zeros((len(run.accuracy), 0)))[seed]):
            yield Point(seed, task + 1, 0, "loss", float(value))
        for (task, step), row in zip(run.logs.get("curve_step", ()), run.logs["curve"][seed] if "curve" in run.logs
                                     else (), strict=True):
            for tested, value in enumerate(row):
                yield Point(seed, int(task), int(step), f"accuracy/{tested + 1}", float(value))


def _ordered(run: Run, seed: int) -> list[tuple[int, int, dict[str, float]]]:
    """Task, step and the values measured then, in order of time."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for point in points(run):
        if point.seed == seed and np.isfinite(point.value):
            found.setdefault((point.task, point.step), {})[point.name] = point.value
    return [(*at, found[at]) for at in sorted(found)]


def _csv(run: Run, place: Path) -> None:
    place.mkdir(parents=True)
    with (place / "points.csv").open("w", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(Point._fields)
        lines.writerows(point for point in points(run) if np.isfinite(point.value))


def _tensorboard(run: Run, place: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for seed in range(len(run.accuracy)):
        with SummaryWriter(str(place / f"seed{seed}")) as writer:
            writer.add_text("spec", f"```\n{json.dumps(run.spec, indent=2)}\n```")
            for task, step, values in _ordered(run, seed):
                for name, value in values.items():
                    tag, at = (f"inside_task_{task + 1}/{name}", step) if step else (name, task)
                    writer.add_scalar(tag, value, at)


def _wandb(run: Run, place: Path) -> None:
    wandb: Any = importlib.import_module("wandb")
    place.mkdir(parents=True)
    for seed in range(len(run.accuracy)):
        began = wandb.init(project="lifelong", group=place.stem, name=f"{run.spec['strategy']}, seed {seed}",
                           config=dict(run.spec) | {"seed": seed, "about": dict(run.about)}, dir=str(place),
                           mode=os.environ.get("WANDB_MODE", "offline"))
        for task, step, values in _ordered(run, seed):
            began.log({"task": task, "step": step} | values)
        began.finish(exit_code=0 if run.about["status"] == "done" else 1)


KINDS: dict[str, Callable[[Run, Path], None]] = {"csv": _csv, "tensorboard": _tensorboard, "wandb": _wandb}


class Loggers:
    """The loggers of one command, as a context manager around its training.

    Args:
        kinds: names of loggers, from `KINDS`.
        folder: where they write, in one folder per logger and run; a run that is there is not written again.
        patience: seconds that a logger may take after training has ended.

    Raises:
        ValueError: an unknown logger.
    """

    def __init__(self, kinds: Sequence[str], folder: Path, patience: float = PATIENCE) -> None:
        self.kinds = [one_of("log", kind, KINDS) for kind in dict.fromkeys(kinds)]
        self.folder, self.patience, self.problems = folder, patience, dict[str, str]()
        self.processes: dict[str, tuple[subprocess.Popen[bytes], Any]] = {}

    def __enter__(self) -> Loggers:
        for kind in self.kinds:
            with self._survived(kind):
                said = tempfile.TemporaryFile()
                # In a new session, so that an interrupt reaches training only; -P, so that no file in the working
                # folder shadows a module.
                process = subprocess.Popen([sys.executable, "-P", "-m", __name__, kind, str(self.folder)],
                                           stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True)
                self.processes[kind] = process, said
                os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
        return self

    def made(self, run: Run) -> None:
        """Sends a finished run of the store to every logger, without waiting for any of them."""
        for kind, (process, _) in self.processes.items():
            with self._survived(kind):  # a pipe takes a line this short completely or not at all
                os.write(process.stdin.fileno(),  # type: ignore[union-attr]
                         os.fsencode(Path(run.about["folder"]).resolve()) + b"\n")

    def __exit__(self, *_: object) -> None:
        for kind, (process, said) in self.processes.items():
            with self._survived(kind):
                process.stdin.close()  # type: ignore[union-attr]
                try:
                    code = process.wait(self.patience)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    self.problems[kind] = f"it did not end within {self.patience:g} s"
                else:
                    said.seek(0)
                    lines = said.read().decode(errors="replace").split("\n")
                    last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
                    self.problems |= {kind: last.strip()} if code else {}
            said.close()

    @property
    def warnings(self) -> list[str]:
        """One sentence about each logger that did not write everything."""
        return [f"--log {kind} did not write everything: {why} (the runs in the store are complete)"
                for kind, why in self.problems.items()]

    @contextlib.contextmanager
    def _survived(self, kind: str) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.problems.setdefault(kind, "it ended early")
        except Exception as error:  # no error of a logger may end the run
            self.problems[kind] = f"{type(error).__name__}: {error}"


def main(kind: str, folder: str) -> None:
    """Writes the runs whose folders come in lines on the standard input, and exits with the last error, if any."""
    failed = ""
    for line in sys.stdin.buffer:
        run_folder = Path(os.fsdecode(line.rstrip(b"\n")))
        place = Path(folder) / kind / run_folder.name
        if place.exists():
            continue
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            KINDS[kind](store.load(run_folder), part)
            part.rename(place)
        except ImportError as error:
            sys.exit(f"{error}; pip install {kind}")
        except Exception as error:  # third-party libraries may raise anything
            failed = " ".join(f"{type(error).__name__}: {error}".split())
    sys.exit(failed or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
