"""Where else runs are written: CSV, TensorBoard, Weights & Biases. Best effort, and never at the cost of a run.

Each sink is a process of its own that is told the folders of finished runs. One that is missing, raises, crashes or
hangs is named in a warning; training neither waits for it nor shares memory, random numbers or threads with it.
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

PATIENCE = 60.0  # seconds that a sink may take for what is left when training has ended


class Point(NamedTuple):
    """One number: of which seed, after how many whole tasks and steps into the next, its name and value."""

    seed: int
    task: int
    step: int
    name: str
    value: float


def points(run: Run) -> Iterator[Point]:
    """All that was measured: accuracies after each task and inside tasks, their averages, and each task's loss.

    `accuracy/1` is that on the first task; task 0 is the untrained learner. What was not measured is left out.
    """
    several = {"accuracy": run.accuracy} | {k: v for k, v in run.logs.items() if k.startswith("accuracy_")}
    for seed in range(len(run.accuracy)):
        for name, values in several.items():
            for task, on in np.argwhere(np.isfinite(values[seed])).tolist():
                yield Point(seed, task, 0, f"{name}/{on + 1}", float(values[seed, task, on]))
            for task, value in enumerate(metrics.average_curve(values[seed])):
                yield Point(seed, task + 1, 0, f"average_{name}", float(value))
        for task, value in enumerate(run.logs.get("loss", np.zeros((len(run.accuracy), 0)))[seed]):
            yield Point(seed, task + 1, 0, "loss", float(value))
        for (task, step), row in zip(run.logs.get("curve_step", ()), run.logs["curve"][seed] if "curve" in run.logs
                                     else (), strict=True):
            for on, value in enumerate(row):
                yield Point(seed, int(task), int(step), f"accuracy/{on + 1}", float(value))


def _ordered(run: Run, seed: int) -> list[tuple[int, int, dict[str, float]]]:
    """Task, step, and everything measured then, in the order in which it was measured."""
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


class Sinks:
    """The sinks of one command.

    Args:
        kinds: of `KINDS`, each once.
        folder: for what they write, a folder per sink and run; a run that is there is not written again.
        patience: seconds that a sink may take when training has ended.

    Raises:
        ValueError: for an unknown kind.
    """

    def __init__(self, kinds: Sequence[str], folder: Path, patience: float = PATIENCE) -> None:
        self.kinds = [one_of("log", kind, KINDS) for kind in dict.fromkeys(kinds)]
        self.folder, self.patience, self.problems = folder, patience, dict[str, str]()
        self.processes: dict[str, tuple[subprocess.Popen[bytes], Any]] = {}

    def __enter__(self) -> Sinks:
        for kind in self.kinds:
            with self._survived(kind):
                said = tempfile.TemporaryFile()
                # In a session of its own, so that an interrupt is the run's alone; -P: no file of the user's shadows.
                process = subprocess.Popen([sys.executable, "-P", "-m", __name__, kind, str(self.folder)],
                                           stdin=subprocess.PIPE, stdout=said, stderr=said, start_new_session=True)
                self.processes[kind] = process, said
                os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
        return self

    def made(self, run: Run) -> None:
        """Tells every sink of a run that is in the store; one that does not listen is not waited for."""
        for kind, (process, _) in self.processes.items():
            with self._survived(kind):  # a line this short is taken whole or not at all
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
        """A sentence for each sink that has not written everything."""
        return [f"--log {kind} has not written everything: {why} (the runs themselves are complete, in the store)"
                for kind, why in self.problems.items()]

    @contextlib.contextmanager
    def _survived(self, kind: str) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.problems.setdefault(kind, "it ended early")
        except Exception as error:  # whatever it is, the run goes on
            self.problems[kind] = f"{type(error).__name__}: {error}"


def main(kind: str, folder: str) -> None:
    """Writes every run whose folder stands in a line of the standard input; what cannot be written fails at the end."""
    failed = ""
    for line in sys.stdin.buffer:
        source = Path(os.fsdecode(line.rstrip(b"\n")))
        place = Path(folder) / kind / source.name
        if place.exists():
            continue
        part = place.with_name(f".{place.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            KINDS[kind](store.load(source), part)
            part.rename(place)
        except ImportError as error:
            sys.exit(f"{error}; pip install {kind}")
        except Exception as error:  # whatever a library of others' raises
            failed = " ".join(f"{type(error).__name__}: {error}".split())
    sys.exit(failed or 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
