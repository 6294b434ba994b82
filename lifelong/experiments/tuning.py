"""Tuning of hyper-parameters without the test data of results: other seeds, training examples only, other classes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lifelong import store
from lifelong.data.stream import Stream
from lifelong.experiments.choice import Choice, Tried, choice
from lifelong.experiments.complete import completed
from lifelong.experiments.experiment import Experiment
from lifelong.experiments.held_out import FIRST, TESTED, search_stream, tuning_stream
from lifelong.experiments.prepare import asked_for, canonical, make_stream, named_stream, prepare
from lifelong.progress import Watcher
from lifelong.provenance import commit
from lifelong.spec import expression, plugins
from lifelong.spec.run import OptionError, Options, Spec
from lifelong.version import __version__

CRITERION = "average accuracy after the last tuning task, on training examples that were held out"
SEARCHED = "average accuracy after the last task of another stream, on its test examples"
# Fields that must be equal in tuning and in runs with its choice.
_SAME = ("stream", "stream_options", "boundaries", "model", "epochs", "steps", "batch_size", "dtype", "augment")


@dataclass
class Tuned:
    """The result of tuning: a choice for each strategy, the file that holds them, and a sentence for each failure."""

    choices: list[Choice]
    file: Path | None
    failures: list[str]


def tune(stream: str, strategies: Sequence[str], options: Options = Options(), extra: Mapping[str, Any] | None = None,
         *, root: Path | None = None, first_tasks: int | None = None, on: str | None = None,
         watcher: Watcher = Watcher()) -> Tuned:
    """Chooses the best setting of each strategy by average accuracy after the last tuning task.

    Tries every combination of listed values, including those of the optimizer; real numbers are lanes of one stack.
    Runs are stored in `root`/tuning, where the same call finds them again; the choices are written beside them.

    Args:
        stream: an expression; its `tuning_stream` is used for training, or nothing of it if `on` is given.
        strategies: expressions with lists of values, each tuned separately.
        options: as in `lifelong run`; `seeds` is the number of tuning streams.
        extra: further options of the stream.
        root: folder of the store; None stores nothing.
        first_tasks: see `tuning_stream`.
        on: another stream for tuning, see `search_stream`.
        watcher: receives progress.

    Raises:
        ValueError, LookupError, TypeError, ImportError, OSError: invalid arguments; the message is one sentence.
    """
    if on is not None and first_tasks is not None:
        raise OptionError("first_tasks is about the stream itself: with on, write fewer tasks there", "first_tasks",
                          "on")
    if on is None:
        there = held = tuning_stream(stream, options, extra, first_tasks)
        name = canonical(stream, extra, held)
    else:
        there = make_stream(stream, options, extra, [*TESTED])
        held = search_stream(on, there, options)
        name = canonical(on, None, held)
    if held.evaluated(held.n_tasks) != range(held.n_tasks):  # the criterion needs all tasks after the last one
        held = replace(held, evaluation=f"all:{held.n_tasks}")
    experiments = []
    for text in strategies:
        if on is not None:
            prepare(there, [text], options)  # refuses strategies that could not be run on `stream` later
        one = completed(held, asked_for(name, held, text, options), options, first=FIRST)
        if len(one.specs) < 2:
            raise OptionError(f"there is nothing to choose for {text}: write a list of values, for example "
                              "\"ewc(strength=[1, 10, 100])\", or the optimizer \"sgd(lr=[0.01, 0.03, 0.1])\"",
                              "optimizer")
        experiments.append(one)
    choices, failures = [], []
    for text, one in zip(strategies, experiments, strict=True):
        outcome = one.run(root / "tuning" if root else None, watcher, root)
        failures += outcome.failures
        if not outcome.failures:
            made = choice(text, one.specs, outcome.runs)
            if np.isfinite(made.best.accuracy).all():
                choices.append(made)
            else:
                failures.append(f"{text}: every setting diverged; smaller step sizes may help")
    file = _write(root, experiments[0].specs[0], there, choices) if root and choices else None
    return Tuned(choices, file, failures)


def _write(root: Path, spec: Spec, stream: Stream, choices: Sequence[Choice]) -> Path:
    """Writes the choices for `stream`, with the request, the results and their cost, and returns the file."""
    how = (spec.stream_options or {})["tuning"]
    same = {name: value for name, value in _same(spec).items() if name != "model"}
    options = json.loads(json.dumps({k: v for k, v in stream.options.items() if k != "tuning"}))
    same |= {"stream": stream.name, "stream_options": options, "boundaries": stream.boundaries}
    asked = [same, how, [[c.asked, [t.strategy + t.optimizer + t.model for t in c.tried]] for c in choices]]
    file = root / "tuning" / f"{stream.name}--{store.digest(asked)}.json"
    criterion = SEARCHED if "on" in how else CRITERION
    record = {"format": 1, **same, "tuning": how, "criterion": criterion, "version": __version__, "commit": commit(),
              "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "choices": [_record(one) for one in choices]}
    store.write(file, json.dumps(record, indent=2, allow_nan=False).encode() + b"\n")
    return file


def _record(choice: Choice) -> dict[str, Any]:
    def one(tried: Tried) -> dict[str, Any]:
        return {"strategy": tried.strategy, "optimizer": tried.optimizer, "model": tried.model, "values": tried.values,
                "accuracy": [float(a) if math.isfinite(a) else None for a in tried.accuracy],
                "seconds": round(tried.seconds, 3)}

    return {"asked": choice.asked, "chosen": one(choice.best), "verdict": choice.verdict, "edges": choice.edges,
            "cost_s": choice.seconds, "tried": [one(t) for t in choice.tried]}


def chosen(file: Path, stream: str, others: Sequence[str], options: Options, extra: Mapping[str, Any] | None = None,
           *, trust: bool = False) -> Experiment:
    """An experiment with the settings chosen in a file of `tune`, each with its own optimizer, and with `others`.

    The choice, its method and its cost become part of each run's record, as `about["tuned"]`.

    Args:
        file: a file written by `lifelong tune`.
        stream, options, extra: as in `prepare`; except for seeds they must be those of the tuning.
        others: further strategies, which are used unchanged.
        trust: whether Python files that only `file` names may be run.

    Raises:
        PermissionError: `file` names a Python file that `stream` and `others` do not name, without `trust`.
        ValueError: the file was not written by `tune`, or the request differs from the tuning.
        LookupError, TypeError, ImportError, OSError: as in `prepare`.
    """
    for name in ("optimizer", "model"):
        if getattr(options, name):
            raise OptionError(f"{name} is part of what {file} chose: leave it out, or leave out tuned", name, "tuned")
    record = _read(file)
    text, built = named_stream(stream, options, extra)
    asked = [spec for other in others for spec in asked_for(text, built, other, options)]
    typed = [term for spec in asked for term in spec.terms] + expression.parse(stream, "streams")
    with nullcontext() if trust else plugins.trusting(term.path for term in typed if term.path):
        for one in record["choices"]:
            best = one["chosen"]
            learned = any(term.learned for term in expression.parse(best["strategy"]))
            own = replace(options, optimizer=best["optimizer"], model=None if learned else best["model"])
            how = {"file": str(file), "chosen": best["values"], "cost_s": one["cost_s"], "settings": len(one["tried"]),
                   "seeds": record["tuning"]["seeds"], "criterion": record["criterion"],
                   **{k: v for k, v in record["tuning"].items() if k in ("on", "overlap")}}
            asked += [replace(spec, tuned=how) for spec in asked_for(text, built, best["strategy"], own)]
        experiment = completed(built, asked, options)
    for one, spec in zip(record["choices"], [spec for spec in experiment.specs if spec.tuned], strict=False):
        _check_same(file, record | {"model": one["chosen"]["model"]}, spec)
    return experiment


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
        whole = all({"chosen", "cost_s", "tried"} <= set(choice) for choice in record["choices"])
        if not whole or not set(_SAME) - {"model"} <= set(record):
            raise KeyError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} is no file of `lifelong tune`, or is damaged: tune again") from None
    return dict(record)


def _same(spec: Spec) -> dict[str, Any]:
    """The fields that must be equal in a tuning run and a run with its choice; `stream` is the stream's name."""
    return {name: getattr(spec, "stream_name" if name == "stream" else name) for name in _SAME}


def _check_same(file: Path, record: Mapping[str, Any], spec: Spec) -> None:
    for name, value in _same(spec).items():
        if record[name] != value:
            raise ValueError(f"{file} was tuned with {name} = {json.dumps(record[name])}, and this run has "
                             f"{json.dumps(value)}: run what was tuned, or tune again")
