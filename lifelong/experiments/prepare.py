"""From words to an experiment: what was asked for, checked before anything is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lifelong import store
from lifelong.data.augment import NONE, written
from lifelong.data.augment import terms as augmenting
from lifelong.data.stream import Stream
from lifelong.experiments import contract as checks
from lifelong.experiments.experiment import Experiment
from lifelong.learning.composition import GradientLearner
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.parts import Part
from lifelong.learning.schedule import Budget
from lifelong.spec import bounds, catalogue, expression
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.expression import Term
from lifelong.spec.run import Options, Setting
from lifelong.starts.pretrain import Pretraining, from_file, make_source
from lifelong.starts.weights import Weights, here
from lifelong.store.records import Run


def device(name: str) -> torch.device:
    """The device called 'auto', 'cpu' or 'cuda'; ValueError where it is not there."""
    bounds.one_of("--device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda was asked for, but there is no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def make_stream(text: str, options: Options, extra: Mapping[str, Any] | None = None,
                seeds: Sequence[int] | None = None) -> Stream:
    """The stream of an expression such as `split-mnist(tasks=5)`.

    Args:
        text: name and options.
        options: seeds and data folder.
        extra: further options from the command line, by name.
        seeds: which; None: 0 to `options.seeds` - 1.

    Raises:
        LookupError: for an unknown stream or option; ValueError, FileNotFoundError: as the stream says.
    """
    term = expression.parse(text, "streams")[0]
    path = term.path
    known = catalogue.hyper_parameters(term.factory)
    for name in extra or {}:
        if name not in known:
            raise LookupError(f"{term.name} has no option {name!r}; it has {', '.join(known)}")
        if name in term.given and term.given[name] != (extra or {})[name]:
            raise ValueError(f"{name} is given twice: {term.given[name]!r} in {text!r} and {(extra or {})[name]!r} as "
                             "an option")
    term = Term(term.name, term.factory, {**term.given, **(extra or {})})
    for name, value in term.given.items():
        if isinstance(value, list):
            raise ValueError(f"{term.name}: {name} takes one value; run each stream by itself")
    stream = expression.build(term, {"seeds": range(options.seeds) if seeds is None else seeds, "data": options.data})
    if not isinstance(stream, Stream):
        raise ValueError(f"{term.name} makes a {type(stream).__name__}, not a Stream")
    if re.search(r"-v\d+$", term.name) and term.name != stream.name:
        raise LookupError(f"there is no {term.name} here: this version of lifelong has {stream.name}")
    return replace(stream, options={**stream.options, "file": catalogue.file_digest(path)[:10]}) if path else stream


def prepare(stream: str | Stream, strategies: Sequence[Any], options: Options = Options(),
            extra: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment, with everything checked that can be checked before training.

    Args:
        stream: an expression, or a Stream made for `options.seeds` seeds.
        strategies: expressions, or Parts, Learners, classes, and functions that make them.
        options: how runs are made.
        extra: further options of the stream.

    Raises:
        LookupError, ValueError, TypeError, ImportError, OSError: one sentence about whatever the user got wrong.
    """
    named = isinstance(stream, str)
    if isinstance(stream, str):
        stream = make_stream(stream, options, extra)
    own = written(stream.augment)
    if options.augment is not None:
        stream = replace(stream, augment=written(options.augment))
    usual = Evaluation.parse(stream.evaluation)
    if options.evaluate is not None:
        stream = replace(stream, evaluation=options.evaluate)
    _check_size(stream)
    where = device(options.device)
    default = stream.defaults
    epochs = options.epochs if options.epochs is not None else int(default.get("epochs", 1))
    steps = options.steps if options.steps is not None else default.get("steps")
    budget = Budget(options.batch_size or int(default.get("batch_size", 10)), epochs,
                    None if options.epochs is not None else steps)
    models = _singles(options.model or default.get("model", "mlp"), "models")
    optimizers = _singles(options.optimizer or default.get("optimizer", "sgd"), "optimizers")
    starts: dict[str, Weights | Pretraining] = {}
    more = {"augment": stream.augment} if written(stream.augment) != own else {}
    if (chosen := Evaluation.parse(stream.evaluation)) != usual:
        more["evaluation"] = str(chosen)
    settings = [_setting(stream, _with_start(stream, terms, options, where, starts), model, optimizer, options,
                         budget, starts, more)
                for strategy in strategies for terms in expression.settings(_terms(strategy))
                for (model,) in models for (optimizer,) in optimizers]
    unique = list({store.digest(s.spec): s for s in settings}.values())
    experiment = Experiment(stream, unique, options, budget, where, named, starts)
    trial = replace(experiment, trying=True, _installed={})
    for setting in unique:
        _check(trial, setting)
    return experiment


def _check_size(stream: Stream) -> None:
    """Refuses a stream whose run, with an accuracy for every seed, row and task, a store could not read back."""
    size = stream.n_seeds * (1 + stream.n_tasks) * stream.n_tasks * 8 * (2 + stream.retention)
    if size > store.LARGEST:
        raise ValueError(f"{stream.name}: the accuracies of {stream.n_seeds} seeds after each of {stream.n_tasks} "
                         f"tasks take {size / 2**30:.1f} GiB, and a run may take {store.LARGEST / 2**30:.0f}: use "
                         "fewer seeds or fewer tasks")


def _singles(text: str, kind: str) -> list[list[Term]]:
    terms = expression.parse(text, kind)
    if len(terms) > 1:
        raise ValueError(f"{text!r}: one of the {kind} is needed, not a sum")
    return expression.settings(terms)


def _terms(strategy: Any) -> list[Term]:
    if isinstance(strategy, str):
        return expression.parse(strategy)
    if isinstance(strategy, (Part, Learner, Initialization)):
        return [Term("strategy", lambda: strategy)]
    if isinstance(strategy, (list, tuple)):
        return [term for one in strategy for term in _terms(one)]
    if callable(strategy):
        catalogue.hyper_parameters(strategy)
        return [Term(strategy.__name__, strategy)]
    raise TypeError(f"a strategy is an expression, a Part, a Learner, a class or a function that makes one; got a "
                    f"{type(strategy).__name__} (of an object that learns, give the class: every seed needs its own)")


def _setting(stream: Stream, terms: list[Term], model: Term, optimizer: Term, options: Options,
             budget: Budget, starts: Mapping[str, Weights | Pretraining], more: Mapping[str, Any]) -> Setting:
    sources = expression.digests([*terms, model, optimizer, *augmenting(stream.augment)])
    for prefix in {t.name.partition(".")[0] for t in terms if "." in t.name}:
        sources[prefix] = metadata.version(catalogue.bridge(f"{prefix}.").distribution)
    spec: dict[str, Any] = {
        "format": 1, "stream": stream.name, "stream_options": dict(stream.options), "boundaries": stream.boundaries,
        "strategy": expression.written(terms), "model": str(model), "optimizer": str(optimizer),
        "epochs": budget.epochs if budget.steps is None else None, "steps": budget.steps,
        "batch_size": budget.batch_size, "eval_every": options.eval_every, "seeds": stream.n_seeds,
        "dtype": options.dtype,
        "hyper": {"strategy": [t.resolved() for t in terms], "model": model.resolved(),
                  "optimizer": optimizer.resolved()},
        "sources": sources, **more,
    }
    setting = Setting(terms, model, optimizer, spec)
    if setting.start:
        start = starts[setting.start]
        about = start.about if isinstance(start, Weights) else {"start": setting.start, "model": start.model}
        spec |= {"model": str(about["model"]), "sources": sources | expression.digests(here("model", about))}
        spec["hyper"]["model"] = {}
        spec["start"] = start.about["sha256"] if isinstance(start, Weights) else start.spec
        seen = frozenset(_content(start))
        both = stream.content & seen
        if both and not options.overlap:
            raise ValueError(f"{setting.start} was learned on {len(both)} of the classes that {stream.name} tests on, "
                             f"for example {min(both)}: use another source, or insist with --overlap")
        spec |= {} if seen and not both else {"overlap": len(both) if seen else "unknown"}
        if stream.mean is not None:
            raise ValueError(f"{setting.start} was learned on pixels as they are, and {stream.name} normalises their "
                             "channels: use a stream that does not")
    return Setting(terms, model, optimizer, json.loads(json.dumps(spec)))


def _with_start(stream: Stream, terms: list[Term], options: Options, where: torch.device,
                starts: dict[str, Weights | Pretraining]) -> list[Term]:
    """The same terms, after the start among them that must be learned was looked up in `starts`, or put there."""
    learned = [term for term in terms if term.learned]
    if len(learned) > 1:
        raise ValueError("a sum can have one start: learning begins in one place")
    for term in learned:
        use = term.resolved()
        if not stream.problem.classes:
            raise ValueError(f"{term.name} is learned to tell classes apart, and the targets of {stream.name} are "
                             "numbers: leave the start out")
        if str(term) in starts:
            continue
        if options.model:
            raise ValueError(f"{term.name} brings its own network: leave --model out, or write {term.name}(model=...)")
        if weights := from_file(term):
            starts[str(term)] = weights
            continue
        source = use["source"] or stream.defaults.get("source")
        if source is None:
            raise ValueError(f"{stream.name} names no source that {term.name} could be learned from: write for example "
                             f"{term.name}(source='omniglot'), or {term.name}(file='FILE') with what `lifelong "
                             "pretrain` made")
        starts[str(term)] = Pretraining(term, make_source(source, options.data), device=where)
    return terms


def _content(start: Weights | Pretraining) -> Iterable[str]:
    return start.about["content"] if isinstance(start, Weights) else start.content


def _check(experiment: Experiment, setting: Setting) -> None:
    """Builds a setting's learner and, where its seeds will be stacked, tries one step of it."""
    name = setting.spec["strategy"]
    learner = experiment.make(setting)({})
    if hasattr(learner, "learn_task") and not experiment.stream.boundaries:
        raise ValueError(f"{name} must be told where a task ends, and this stream does not tell")
    problem, low = experiment.stream.problem, experiment.options.dtype == "bfloat16"
    if not problem.classes and getattr(learner, "classes", False) is True:
        raise ValueError(f"{name} learns classes, and the targets of {problem.name} are numbers: use another strategy, "
                         "for example er or ewc")
    if low and not problem.scaled:
        raise ValueError(f"--dtype bfloat16 rounds examples, and {problem.name} leaves them as they are: leave it out")
    net = learner.net if isinstance(learner, GradientLearner) else None
    if low and (not isinstance(learner, Learner) or (net and net.dtype is None)):
        raise ValueError(f"{name} trains a network of its own, which --dtype bfloat16 would leave as it is: leave it "
                         "out")
    if experiment.stream.augment != NONE and not isinstance(learner, GradientLearner):
        raise ValueError(f"{name} fetches its examples itself, as they are, so {experiment.stream.augment} would not "
                         "reach it: use --augment none")
    if not isinstance(learner, Learner):
        return
    if learner.boundaries and not experiment.stream.boundaries:
        raise ValueError(f"{name} must be told where a task ends, and this stream does not tell")
    if learner.told and experiment.stream.scenario != "task":
        raise ValueError(f"{name} must be told the task to answer, and this stream is {experiment.stream.scenario}-"
                         "incremental: use --scenario task")
    try:
        checks.probe(experiment.lanes([setting]), experiment.budget)
    except checks.Impure as error:
        raise checks.Impure(f"{name}: {error}") from error


def run(stream: str | Stream, strategy: Any, *, store: str | Path | None = None, **options: Any) -> Run:
    """One strategy on one stream, all seeds at once.

    Args:
        stream: an expression such as "split-mnist(tasks=5)", or a Stream.
        strategy: an expression, or a Part, a Learner, a list of parts, a class or a function that makes one.
        store: folder in which the run is kept, found and resumed; None keeps nothing.
        options: fields of `Options`: seeds, epochs, batch_size, optimizer, model, device and so on.

    Raises:
        ValueError, LookupError, TypeError, ImportError: for whatever was asked wrongly.
        RuntimeError: where training failed.
    """
    if isinstance(stream, Stream) and options.setdefault("seeds", stream.n_seeds) != stream.n_seeds:
        raise ValueError(f"the stream {stream.name} was made for {stream.n_seeds} seeds, got "
                         f"seeds={options['seeds']}")
    experiment = prepare(stream, [strategy], Options(**options))
    if len(experiment.settings) > 1:
        raise ValueError("run makes one run: give single values, or use prepare(...).run(...)")
    outcome = experiment.run(Path(store) if store else None)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    return outcome.runs[0]
