"""Online learning, replay and regularisation from three starts, with step sizes chosen on characters of their own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from lifelong.cli import _watcher
from lifelong.experiment import Outcome
from lifelong.metrics import average_accuracy, mean_interval
from lifelong.request import Options, prepare
from lifelong.store import Run

SOURCE = "omniglot(classes=763)"
RATES = "[0.001, 0.003, 0.01, 0.03, 0.1, 0.3]"
# (heading, start as it is used): the standard one moves as a whole, the others stay but for the output layer.
STARTS = {"standard": "supervised({pre}, adapt='all')", "pre-training": "supervised({pre})", "OML": "oml({oml})"}
METHODS = {"online": "", "approx. IID": "joint", "er": "er(capacity=200)", "ewc": "ewc(strength=[1, 30])",
           "er + ewc": "er(capacity=200) + ewc(strength=[1, 30])", "mer": f"mer(capacity=200, lr={RATES})"}
# Test accuracy of the paper's table 2, in the order of STARTS.
PUBLISHED = {1: {"online": (4.64, 21.16, 64.72), "approx. IID": (53.95, 54.29, 75.12), "er": (52.56, 36.72, 68.16),
                 "ewc": (5.08, 18.72, 64.44), "mer": (54.88, 62.76, 76.00)},
             5: {"online": (1.40, 11.80, 55.32), "approx. IID": (48.02, 46.02, 67.03), "er": (24.32, 37.44, 60.92),
                 "ewc": (2.04, 10.03, 56.03), "mer": (29.02, 42.05, 62.05)}}


def ran(stream: str, strategy: str, rates: str, seeds: int, asked: argparse.Namespace) -> list[Run]:
    """The runs of a strategy, one for each combination of values."""
    with _watcher(asked.quiet) as watcher:
        outcome: Outcome = prepare(stream, [strategy], Options(
            seeds=seeds, steps=asked.steps, batch_size=1, epochs=None if asked.steps else 1, data=asked.data,
            optimizer=f"sgd(lr={rates})")).run(asked.store, watcher)
    if outcome.failures:
        sys.exit(f"{strategy}: {outcome.failures[0]}")
    return outcome.runs


def score(run: Run) -> float:
    """Mean over seeds of the final accuracy; a diverged run is worth nothing."""
    return float(np.nan_to_num(average_accuracy(run.accuracy), nan=0.0).mean())


def cell(tasks: int, each: int, start: str, method: str, asked: argparse.Namespace) -> tuple[str, str]:
    """Accuracy on evaluation characters with the values that were best on background characters, and these values."""
    strategy = f"{start} + {method}" if method else start
    rates = "0.1" if method.startswith("mer") else RATES  # its steps are its own
    shape = f"tasks={asked.tasks or tasks}, classes_per_task={each}"
    tried = ran(f"split-omniglot({shape}, part='background', first=763)", strategy, rates, asked.search, asked)
    best = max(tried, key=score).spec
    rate = str(best["hyper"]["optimizer"]["lr"])
    (run,) = ran(f"split-omniglot({shape})", best["strategy"], rate, asked.seeds, asked)
    mean, half = mean_interval(100 * average_accuracy(run.accuracy))
    own = [best["strategy"].split(" + ", 1)[1]] if method else []
    own += [] if method.startswith("mer") else [best["optimizer"]]
    return f"{mean:.1f} ± {half:.1f}", ", ".join(own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--search", type=int, default=3, help="seeds to choose step sizes with")
    parser.add_argument("--model", default="oml_net(width=64)")
    parser.add_argument("--pre", default="steps=2000", help="hyper-parameters of the supervised start")
    parser.add_argument("--oml", default="classes=1, shots=20, others=0, remember=64, steps=1500, lr=0.0003")
    parser.add_argument("--file", help="of a supervised start, for a further column: its features, of length 10")
    parser.add_argument("--starts", default=",".join(STARTS), help="which of them")
    parser.add_argument("--tasks", type=int, help="tasks of both streams, for a quick look")
    parser.add_argument("--steps", type=int, help="steps a task and of small starts; two methods on one stream")
    parser.add_argument("--data")
    parser.add_argument("--quiet", action="store_true")
    asked = parser.parse_args()
    methods, shapes = METHODS, ((50, 1), (20, 5))
    if asked.steps:
        asked.model, asked.pre = "oml_net(width=4)", f"steps={asked.steps}"
        asked.oml = f"classes=1, shots=3, others=0, remember=4, steps={asked.steps}"
        methods, shapes = {name: METHODS[name] for name in ("online", "mer")}, ((20, 5),)
    common = f", model='{asked.model}', source='{SOURCE}'"
    starts = {name: text.format(pre=asked.pre + common, oml=asked.oml + common) for name, text in STARTS.items()
              if name in asked.starts.split(",")}
    if asked.file:
        starts["file"] = f"supervised(file='{asked.file}', length=10)"
    print(f"# Split Omniglot from three starts\n\nMade by `sh reports/split-omniglot/run.sh`; network {asked.model}, "
          f"supervised({asked.pre}), oml({asked.oml}), both from {SOURCE}; {asked.seeds} seeds. Accuracy on 5 held-out "
          "drawings of each character after the stream, percent; ± is half a 95 % t interval over seeds. In brackets "
          "the paper's, whose network is 4 times as wide and sees 84 pixels a side.")
    for tasks, each in shapes:
        print(f"\n## {asked.tasks or tasks} tasks of {each}\n\n| method | " + " | ".join(starts) + " |\n|---"
              + "|---:" * len(starts) + "|")
        chosen = []
        for name, method in methods.items():
            cells = []
            for heading, start in starts.items():
                value, own = cell(tasks, each, start, method, asked)
                known = PUBLISHED[each].get(name) if heading in STARTS else None
                cells.append(f"{value} ({known[list(STARTS).index(heading)]:.1f})" if known else value)
                chosen.append(f"{heading}, {name}: {own}")
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        print("\nChosen on background characters: " + "; ".join(chosen) + ".")


if __name__ == "__main__":
    main()
