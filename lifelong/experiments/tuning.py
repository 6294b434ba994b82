"""Choosing hyper-parameters on what nothing is reported on: other seeds, training examples alone, other classes."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lifelong import metrics, store
from lifelong.data.stream import Stream
from lifelong.experiments.experiment import Experiment
from lifelong.experiments.prepare import make_stream, prepare
from lifelong.progress import Watcher
from lifelong.provenance import commit
from lifelong.randomness import generator
from lifelong.spec import bounds, expression
from lifelong.spec.run import Options, Setting
from lifelong.store.records import Run
from lifelong.version import __version__

FIRST = 1_000_000  # the first seed that is tuned on; runs count theirs from 0
TESTED = range(10)  # seeds of runs whose test examples a tuning stream is held against
SHARE = 0.2  # of the training examples of every class, those that validate
CRITERION = "average accuracy after the last tuning task, on training examples that were held out"
SEARCHED = "average accuracy after the last task of another stream, on its test examples"
# What must be equal between what was tuned and what is run with the choice.
_SAME = ("stream", "stream_options", "boundaries", "model", "epochs", "steps", "batch_size", "dtype", "augment")


def tuning_stream(text: str, options: Options, extra: Mapping[str, Any] | None = None,
                  first_tasks: int | None = None) -> Stream:
    """The stream of an expression as hyper-parameters are chosen on it: no example that is tested on is in it.

    Seeds: `options.seeds` of them from 1,000,000 on, so that class orders, permutations, angles, first parameters and
    the order of examples are drawn anew; runs count their seeds from 0. Examples: of the training examples of every
    class a fifth, drawn for each seed, validates and four fifths are learned from. An example validates in every task
    in which it occurs, so that none is learned under one rotation and asked about under another. Everything that the
    stream tests on is left out of the pool of examples itself, which is a copy in memory, so nothing later can look at
    it. The output layer is that of the whole stream.

    Args:
        text: the stream, as for `lifelong run`.
        options: seeds and data folder.
        extra: further options of the stream.
        first_tasks: tasks that are learned, the first ones, 1 or more; None: all. Hyper-parameters that are chosen on
            a few tasks at the beginning owe nothing to those that come later.

    Raises:
        ValueError: where some seed trains on what another one tests on, or too little is left to validate on.

    Source: a learner's own first tasks for choosing are Chaudhry et al. 2019, arXiv:1812.00420, who leave them out of
        the test; here they are tasks of other seeds.
    """
    bounds.at_least(1, **{"--first-tasks": 1 if first_tasks is None else first_tasks})
    seeds = [*TESTED, *range(FIRST, FIRST + options.seeds)]
    stream = make_stream(text, options, extra, seeds)
    if stream.n_seeds != len(seeds):
        raise ValueError(f"{stream.name} was asked for {len(seeds)} seeds and has {stream.n_seeds}: a stream of fixed "
                         "seeds leaves no others to choose on")
    if first_tasks is not None and first_tasks > stream.n_tasks:
        raise ValueError(f"--first-tasks {first_tasks} was asked for, but {stream.name} has {stream.n_tasks} tasks")
    return _held_out(stream, len(TESTED), first_tasks or stream.n_tasks)


def _held_out(stream: Stream, tested: int, tasks: int) -> Stream:
    n = len(stream.y)
    asked = torch.zeros(n, dtype=torch.bool)
    asked[stream.test[stream.test >= 0] % n] = True
    train = stream.train[tested:, :tasks]
    example = train.clamp(min=0) % n
    if bool((asked[example] & (train >= 0)).any()):
        raise ValueError(f"{stream.name} draws anew for each seed which examples are tested on, so that one seed "
                         "trains on what another tests on, and nothing is left to choose on: fix which examples "
                         "test, or choose on another stream")
    validates = torch.stack([_drawn(stream, rows, FIRST + s) for s, rows in enumerate(train)])
    held = validates.gather(1, example.flatten(1)).view_as(train)
    learn, asks = (_packed(train.masked_fill((train < 0) | out, -1)) for out in (held, ~held))
    classes = stream.classes[tested:, :tasks]
    belong = classes.any(1)
    spare = stream.n_classes - 1 - int(belong.any(0).nonzero().max())
    if not bool(belong[:, :stream.n_classes - spare].all()):
        raise ValueError(f"the first {tasks} tasks of {stream.name} have other output units in every seed: choose on "
                         "all tasks, without --first-tasks")
    used = torch.unique(example[train >= 0])
    present = torch.unique(stream.y[used])
    label = None if stream.label is None else stream.label[tested:][..., present]
    if stream.label is None and not torch.equal(present, torch.arange(len(present))):
        label = present.expand(len(train), 1 if stream.warp is None else stream.warp.shape[1], -1)
    there = {"seeds": [FIRST, FIRST + len(train) - 1], "validates": SHARE, "tasks": tasks}
    return replace(
        stream, x=stream.x[used], y=torch.searchsorted(present, stream.y[used]),
        train=_moved(learn, used, n), test=_moved(asks, used, n), classes=classes, spare=spare, retention=False,
        warp=None if stream.warp is None else stream.warp[tested:], label=label,
        options={**stream.options, "tuning": there})


def search_stream(on: str, stream: Stream, options: Options) -> Stream:
    """Another stream to choose on, whole, by its test examples: nothing of it is tested on by `stream`.

    Its seeds are `options.seeds` of them from 1,000,000 on. Model, optimizer, passes, batch, augmentation, and whether
    learners are told where a task ends, are those of `stream` where nothing else is asked for.

    Args:
        on: an expression: for example the same protocol on other characters.
        stream: what will be run, of the seeds whose test examples count.
        options: seeds and data folder; `overlap`: use it though it shares classes or images, and say so in the record.

    Raises:
        ValueError: where it shows classes or images that `stream` tests on, or what is tested on has no names to know
            classes by, or the two are not of one scenario, or its seeds are fixed.

    Source: streams of other characters for choosing step sizes are those of Javed & White 2019, arXiv:1905.12588.
    """
    here = make_stream(on, options, None, range(FIRST, FIRST + options.seeds))
    if here.n_seeds != options.seeds:
        raise ValueError(f"{here.name} was asked for {options.seeds} seeds and has {here.n_seeds}: a stream of fixed "
                         "seeds leaves no others to choose on")
    if here.scenario != stream.scenario:
        raise ValueError(f"--on {here.name} is {here.scenario}-incremental and {stream.name} is "
                         f"{stream.scenario}-incremental: choose on a stream of the same scenario")
    if not here.content or not stream.content:
        raise ValueError(f"{(stream if here.content else here).name} does not say what it tests on, so nobody can tell "
                         "whether the other stream holds some of it: leave --on out")
    classes, images = here.content & stream.content, len(_images(here, whole=True) & _images(stream))
    if (classes or images) and not options.overlap:
        what = f"tests on {len(classes)} of the classes that {stream.name} tests on, for example {min(classes)}" \
            if classes else f"shows {images} of the images that {stream.name} tests on"
        raise ValueError(f"--on {here.name} {what}: choose on others, or insist with --overlap")
    there: dict[str, Any] = {"seeds": [FIRST, FIRST + here.n_seeds - 1], "on": {"stream": here.name, **here.options}}
    there |= {"overlap": {"classes": len(classes), "images": images}} if classes or images else {}
    return replace(here, retention=False, defaults=stream.defaults, augment=stream.augment,
                   boundaries=stream.boundaries, options={**here.options, "tuning": there})


def _images(stream: Stream, whole: bool = False) -> set[bytes]:
    """Digests of the images that a stream tests on, as they are stored; `whole`: also of those it trains on."""
    parts = [stream.test, stream.train] if whole else [stream.test]
    rows = torch.unique(torch.cat([p[p >= 0] for p in parts]) % len(stream.y))
    return {hashlib.blake2b(one.tobytes(), digest_size=16).digest() for part in rows.split(1024)
            for one in stream.x[part].numpy()}


def _drawn(stream: Stream, rows: Tensor, seed: int) -> Tensor:
    """Which examples [N] of one seed's training rows validate: of every class a fifth, at least one."""
    if not stream.problem.classes:
        raise ValueError(f"tuning holds out examples of every class, and the targets of {stream.name} are numbers: "
                         "choose on another stream with --on")
    there = torch.unique(rows[rows >= 0] % len(stream.y))
    there = there[torch.randperm(len(there), generator=generator(seed, "validation"))]
    validates = torch.zeros(len(stream.y), dtype=torch.bool)
    for one in torch.unique(stream.y[there]).tolist():
        own = there[stream.y[there] == one]
        if len(own) < 2:
            raise ValueError(f"{stream.name} has one training example of class {one}: it takes two, one to learn from "
                             "and one to choose by")
        validates[own[:max(1, round(SHARE * len(own)))]] = True
    return validates


def _packed(rows: Tensor) -> Tensor:
    """Rows [S, T, n] with the pads at the end, and no more of them than the longest task needs."""
    order = (rows < 0).byte().argsort(dim=-1, stable=True)
    return rows.gather(-1, order)[..., :int((rows >= 0).sum(-1).max())]


def _moved(rows: Tensor, used: Tensor, n: int) -> Tensor:
    """The same rows in a pool that holds the `used` of `n` examples alone."""
    at = rows.clamp(min=0)
    return torch.where(rows < 0, -1, at // n * len(used) + torch.searchsorted(used, at % n))


def shown(value: Any) -> str:
    """A hyper-parameter's value as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Tried:
    """One setting: what it is, its validation accuracy of each seed [S] (NaN: diverged), and the seconds it took."""

    strategy: str
    optimizer: str
    model: str
    values: dict[str, Any]
    accuracy: np.ndarray
    seconds: float

    @property
    def name(self) -> str:
        """The values that were chosen among, as `ewc.strength=10, sgd.lr=0.1`."""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())

    @property
    def score(self) -> tuple[float, float]:
        """Mean over seeds, and half width of its 95 % t interval; NaN where a seed diverged."""
        mean, half = metrics.mean_interval(self.accuracy)
        return float(mean), float(half)


@dataclass(frozen=True, eq=False)
class Choice:
    """The settings of one strategy, best first; those that diverged last."""

    asked: str
    tried: list[Tried]

    @property
    def best(self) -> Tried:
        """The setting that was chosen."""
        return self.tried[0]

    def behind(self, other: Tried) -> metrics.Paired | None:
        """How far another setting is behind the chosen one, paired by seed; None where one cannot say."""
        if len(other.accuracy) < 2 or not np.isfinite(other.accuracy).all():
            return None
        return metrics.paired_difference(self.best.accuracy, other.accuracy)

    @property
    def alike(self) -> list[Tried]:
        """The settings that these seeds cannot tell from the chosen one: the interval of the difference has 0."""
        return [t for t in self.tried[1:] if np.isfinite(t.accuracy).all()
                and ((d := self.behind(t)) is None or d.mean <= d.half_width)]

    @property
    def verdict(self) -> str:
        """One sentence: what was chosen, and whether the seeds can tell it from the next."""
        said, seeds = self.best.name, f"{len(self.best.accuracy)} seeds"
        if len(self.tried) < 2 or not np.isfinite(self.tried[1].accuracy).all():
            return f"{said} is chosen: no other setting reached the end"
        found = self.behind(self.tried[1])
        if found is None:
            return f"{said} is chosen; one seed cannot tell it from the next"
        ahead = f"{100 * found.mean:.1f} ± {100 * found.half_width:.1f} points ahead of {self.tried[1].name}"
        if self.alike:
            others = f"{len(self.alike)} other setting" + "s" * (len(self.alike) > 1)
            return f"{said} is chosen, {ahead}; {seeds} cannot tell it from {others}"
        return f"{said} is chosen, {ahead}, which {seeds} can tell"

    @property
    def edges(self) -> list[str]:
        """A sentence for each number that was chosen at the end of its grid."""
        said = []
        for name, value in self.best.values.items():
            grid = [v for t in self.tried if type(v := t.values[name]) in (int, float)]
            if type(value) in (int, float) and len(set(grid)) > 1 and value in (min(grid), max(grid)):
                side = "smallest" if value == min(grid) else "largest"
                said.append(f"{name}={shown(value)} is the {side} that was tried: the best may lie beyond")
        return said

    @property
    def seconds(self) -> float:
        """What all settings took together."""
        return round(sum(t.seconds for t in self.tried), 1)


@dataclass
class Tuned:
    """What came of tuning: a choice for each strategy, the file that holds them, and a sentence for each failure."""

    choices: list[Choice]
    file: Path | None
    failures: list[str]


def tune(stream: str, strategies: Sequence[str], options: Options = Options(), extra: Mapping[str, Any] | None = None,
         *, root: Path | None = None, first_tasks: int | None = None, on: str | None = None,
         watcher: Watcher = Watcher()) -> Tuned:
    """For each strategy the best of its settings, by average accuracy after the last tuning task.

    Every combination of the values in lists is tried, those of the optimizer with each; real numbers are lanes of one
    stack. Runs are kept in `root`/tuning, where the same call finds them again; the choices are written beside them.

    Args:
        stream: an expression; what is learned of it is `tuning_stream`, or nothing where `on` is given.
        strategies: expressions with lists of values, each tuned by itself.
        options: as for `lifelong run`; `seeds` are the tuning streams.
        extra: further options of the stream.
        root: of the store; None keeps nothing.
        first_tasks: see `tuning_stream`.
        on: another stream to choose on, see `search_stream`.
        watcher: is told of progress.

    Raises:
        ValueError, LookupError, TypeError, ImportError, OSError: one sentence about whatever the user got wrong.
    """
    if on is not None and first_tasks is not None:
        raise ValueError("--first-tasks is about the stream itself: with --on, write fewer tasks there")
    if on is None:
        there = held = tuning_stream(stream, options, extra, first_tasks)
    else:
        there = make_stream(stream, options, extra, [*TESTED])
        held = search_stream(on, there, options)
    if held.evaluated(held.n_tasks) != range(held.n_tasks):  # the choice is by all tasks after the last one
        held = replace(held, evaluation=f"all:{held.n_tasks}")
    experiments = []
    for text in strategies:
        if on is not None:
            prepare(there, [text], options)  # what could not be run with the choice is refused now
        one = replace(prepare(held, [text], options), named=True, first=FIRST)
        if len(one.settings) < 2:
            raise ValueError(f"there is nothing to choose for {text}: write a list of values, for example "
                             "\"ewc(strength=[1, 10, 100])\" or --optimizer \"sgd(lr=[0.01, 0.03, 0.1])\"")
        experiments.append(one)
    choices, failures = [], []
    for text, one in zip(strategies, experiments, strict=True):
        outcome = one.run(root / "tuning" if root else None, watcher, root)
        failures += outcome.failures
        if not outcome.failures:
            choice = _choice(text, one.settings, outcome.runs)
            if np.isfinite(choice.best.accuracy).all():
                choices.append(choice)
            else:
                failures.append(f"{text}: every setting diverged; smaller step sizes may help")
    file = _write(root, experiments[0], there, choices) if root and choices else None
    return Tuned(choices, file, failures)


def _choice(text: str, settings: Sequence[Setting], runs: Sequence[Run]) -> Choice:
    tried = [Tried(run.spec["strategy"], run.spec["optimizer"], run.spec["model"], values,
                   metrics.average_accuracy(run.accuracy),
                   run.about["seconds"] * len(run.accuracy) / run.about["lanes"])
             for run, values in zip(runs, _values(settings), strict=True)]
    return Choice(text, sorted(tried, key=lambda t: (math.isnan(t.score[0]), -t.score[0])))


def _values(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Of each setting the hyper-parameters in which they differ, as `ewc.strength`; a second ewc is `ewc_2`."""
    every = []
    for setting in settings:
        terms = [*setting.terms, setting.model, setting.optimizer]
        names = [term.name for term in terms]
        twins = [names[:i].count(name) for i, name in enumerate(names)]
        every.append({f"{term.name}_{twin + 1}.{key}" if twin else f"{term.name}.{key}": value
                      for term, twin in zip(terms, twins, strict=True) for key, value in term.resolved().items()})
    differ = [name for name in every[0] if len({repr(named.get(name)) for named in every}) > 1]
    return [{name: named.get(name) for name in differ} for named in every]


def _write(root: Path, experiment: Experiment, stream: Stream, choices: Sequence[Choice]) -> Path:
    """The file that holds the choices for `stream`: what was asked, what was found, and what it cost."""
    spec = experiment.settings[0].spec
    how = spec["stream_options"]["tuning"]
    same: dict[str, Any] = {name: spec.get(name) for name in _SAME if name != "model"}
    options = json.loads(json.dumps({k: v for k, v in stream.options.items() if k != "tuning"}))
    same |= {"stream": stream.name, "stream_options": options, "boundaries": stream.boundaries}
    asked = [same, how, [[c.asked, [t.strategy + t.optimizer + t.model for t in c.tried]] for c in choices]]
    file = root / "tuning" / f"{stream.name}--{store.digest(asked)}.json"
    criterion = SEARCHED if "on" in how else CRITERION
    record = {"format": 1, **same, "tuning": how, "criterion": criterion, "version": __version__, "commit": commit(),
              "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "choices": [_record(choice) for choice in choices]}
    store.write(file, json.dumps(record, indent=2, allow_nan=False).encode() + b"\n")
    return file


def _record(choice: Choice) -> dict[str, Any]:
    def one(tried: Tried) -> dict[str, Any]:
        return {"strategy": tried.strategy, "optimizer": tried.optimizer, "model": tried.model, "values": tried.values,
                "accuracy": [float(a) if math.isfinite(a) else None for a in tried.accuracy],
                "seconds": round(tried.seconds, 3)}

    return {"asked": choice.asked, "chosen": one(choice.best), "verdict": choice.verdict, "edges": choice.edges,
            "cost_s": choice.seconds, "tried": [one(t) for t in choice.tried]}


def chosen(file: Path, stream: str, others: Sequence[str], options: Options,
           extra: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment of what a file of `tune` chose, each strategy with its own optimizer, and of `others` beside it.

    What the choice was, how it was made and what it cost becomes part of each run's record, as `about["tuned"]`.

    Args:
        file: as `lifelong tune` wrote it.
        stream, options, extra: as for `request.prepare`; they must be those of the tuning but for seeds.
        others: further strategies, as they are.

    Raises:
        ValueError: where the file is none of `tune`, or what is asked for is not what was tuned.
        LookupError, TypeError, ImportError, OSError: as `request.prepare`.
    """
    if options.optimizer or options.model:
        raise ValueError(f"{'--optimizer' if options.optimizer else '--model'} is part of what {file} chose: leave it "
                         "out, or leave out --tuned")
    record = _read(file)
    built = make_stream(stream, options, extra)
    experiments = [prepare(built, list(others), options)] if others else []
    for choice in record["choices"]:
        best = choice["chosen"]
        learned = any(term.learned for term in expression.parse(best["strategy"]))
        one = prepare(built, [best["strategy"]], replace(options, optimizer=best["optimizer"],
                                                         model=None if learned else best["model"]))
        _check_same(file, record | {"model": best["model"]}, one.settings[0].spec)
        tuned = {"file": str(file), "chosen": best["values"], "cost_s": choice["cost_s"],
                 "settings": len(choice["tried"]), "seeds": record["tuning"]["seeds"], "criterion": record["criterion"],
                 **{k: v for k, v in record["tuning"].items() if k in ("on", "overlap")}}
        experiments.append(replace(one, settings=[replace(one.settings[0], tuned=tuned)]))
    return replace(experiments[-1], named=True, settings=[s for one in experiments for s in one.settings],
                   starts={name: start for one in experiments for name, start in one.starts.items()})


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_bytes())
        whole = all({"chosen", "cost_s", "tried"} <= set(choice) for choice in record["choices"])
        if not whole or not set(_SAME) - {"model"} <= set(record):
            raise KeyError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file} is no file of `lifelong tune`, or is damaged: tune again") from None
    return dict(record)


def _check_same(file: Path, record: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    for name in _SAME:
        if record[name] != spec.get(name):
            raise ValueError(f"{file} was tuned with {name} = {json.dumps(record[name])}, and this run has "
                             f"{json.dumps(spec.get(name))}: run what was tuned, or tune again")
