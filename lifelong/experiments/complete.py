"""Makes an experiment from requested specs: completes them, and checks them before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

import torch

from lifelong import store
from lifelong.data.augment import NONE, written
from lifelong.data.augment import terms as augmenting
from lifelong.data.stream import Stream
from lifelong.experiments import contract as checks
from lifelong.experiments.experiment import Experiment
from lifelong.experiments.learners import Learners
from lifelong.learning.composition import GradientLearner
from lifelong.learning.schedule import Budget
from lifelong.spec import catalogue, expression
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.expression import Term
from lifelong.spec.run import OptionError, Options, Spec, one_of
from lifelong.starts.pretrain import Pretraining, from_file, make_source
from lifelong.starts.weights import Weights, here
from lifelong.surroundings import kept

# Options that all specs of an experiment have in common.
SHARED = ("epochs", "steps", "batch_size", "seeds", "eval_every", "dtype", "augment", "evaluate")
# Fields of a complete spec that are not given by the user and may have changed since the run.
RECORDED = ("code", "stream_name", "seeds", "boundaries", "stream_options", "data", "hyper", "start")


def device(name: str) -> torch.device:
    """The device called 'auto', 'cpu' or 'cuda'; ValueError if it is not available."""
    one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device='cuda' was asked for, but no CUDA is here: use device='cpu'", "device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def completed(stream: Stream, asked: Sequence[Spec], options: Options, *, named: bool = True,
              first: int = 0) -> Experiment:
    """An experiment of specs that share a stream and its options, completed and checked.

    Args:
        stream: the stream, made for the seeds of the specs.
        asked: specs with an optimizer and, unless they have a start, a model.
        options: the options of the specs, and those that do not identify a run: device, data, memory and so on.
        named: whether the stream was given as an expression.
        first: the stream's first seed.
    """
    own = written(stream.augment)
    if options.augment is not None:
        stream = replace(stream, augment=written(options.augment))
    usual = Evaluation.parse(stream.evaluation)
    if options.evaluate is not None:
        stream = replace(stream, evaluation=options.evaluate)
    schedule = Evaluation.parse(stream.evaluation)
    _check_size(stream)
    where, default = device(options.device), stream.defaults
    steps = options.steps if options.steps is not None else default.get("steps")
    budget = Budget(options.batch_size or int(default.get("batch_size", 10)),
                    options.epochs if options.epochs is not None else int(default.get("epochs", 1)),
                    None if options.epochs is not None else steps)
    facts: dict[str, Any] = {"epochs": budget.epochs if budget.steps is None else None, "steps": budget.steps,
             "batch_size": budget.batch_size, "seeds": stream.n_seeds, "boundaries": stream.boundaries,
             "stream_name": stream.name, "stream_options": dict(stream.options), "data": _content(stream),
             "augment": stream.augment if written(stream.augment) != own else None,
             "evaluate": str(schedule) if schedule != usual else None}
    starts: dict[str, Weights | Pretraining] = {}
    every = [_complete(replace(spec, **facts), stream, options, where, starts) for spec in asked]
    for spec, complete in zip(asked, every, strict=True):
        _check_same(spec, complete)
    specs = list({spec.digest: spec for spec in every}.values())
    learners = Learners(stream, options, budget, where, starts, first, trial=True)
    alone = _checked(specs, learners)
    learners.trial = False
    learners.forget_starts()
    return Experiment(specs, options, learners, named, alone)


def _check_size(stream: Stream) -> None:
    """Refuses a stream whose runs, with an accuracy for every seed, row and task, are too large for a store to read."""
    size = stream.n_seeds * (1 + stream.n_tasks) * stream.n_tasks * 8 * (2 + stream.retention)
    if size > store.LARGEST:
        raise ValueError(f"{stream.name}: the accuracies of {stream.n_seeds} seeds after each of {stream.n_tasks} "
                         f"tasks take {size / 2**30:.1f} GiB, and a run may take {store.LARGEST / 2**30:.0f}: use "
                         "fewer seeds or fewer tasks")


def _complete(spec: Spec, stream: Stream, options: Options, where: torch.device,
              starts: dict[str, Weights | Pretraining]) -> Spec:
    """The spec with all fields that identify its run; the start among its terms, if any, is added to `starts`."""
    optimizer, term = spec.optimizer_term, _one_start(spec.terms)
    hyper = {"strategy": [t.resolved() for t in spec.terms], "optimizer": optimizer.resolved(),
             "model": {} if term else spec.model_term.resolved()}
    terms = [*spec.terms, optimizer, *augmenting(stream.augment), *([] if term else [spec.model_term])]
    stream_term = expression.parse(spec.stream, "streams") if ".py:" in spec.stream else []
    code = expression.digests([*terms, *stream_term])
    for prefix in {t.name.partition(".")[0] for t in spec.terms if "." in t.name}:
        code[prefix] = metadata.version(catalogue.bridge(f"{prefix}.").distribution)
    more: dict[str, Any] = {"overlap": None, "start": None}
    if term:
        allowed = options.overlap or spec.overlap not in (None, 0, "unknown")
        more = _begun(term, stream, replace(options, overlap=allowed), where, starts)
        code |= more.pop("code")
    return replace(spec, hyper=json.loads(json.dumps(hyper)), code=code,
                   stream_options=json.loads(json.dumps(spec.stream_options)), **more)


def _check_same(asked: Spec, complete: Spec) -> None:
    """Raises ValueError if a field recorded in a spec differs here."""
    for name in RECORDED:
        was, now = getattr(asked, name), getattr(complete, name)
        if was is not None and was != now and (name != "seeds" or asked.hyper is not None):
            what, was, now = _difference(name, was, now)
            raise ValueError(f"{asked.strategy} on {asked.stream} cannot be made again here: {what} was "
                             f"{json.dumps(was)} and is {json.dumps(now)}")


def _difference(name: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place where two JSON values differ, as `hyper.strategy[0].capacity`, and the two values there."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(key for key in [*was, *now] if was.get(key) != now.get(key) or (key in was) != (key in now))
        return _difference(f"{name}.{key}", was.get(key), now.get(key))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        at = next(i for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
        return _difference(f"{name}[{at}]", was[at], now[at])
    return name, was, now


def _one_start(terms: Sequence[Term]) -> Term | None:
    """The start among some terms that must be learned first; ValueError if there are several."""
    learned = [term for term in terms if term.learned]
    if len(learned) > 1:
        raise ValueError("a sum can have one start: learning begins in one place")
    return learned[0] if learned else None


def _begun(term: Term, stream: Stream, options: Options, where: torch.device,
           starts: dict[str, Weights | Pretraining]) -> dict[str, Any]:
    """The fields of a spec that describe the start `term`, which is added to `starts` if it is missing."""
    if not stream.problem.classes:
        raise ValueError(f"{term.name} is learned to tell classes apart, and the targets of {stream.name} are "
                         "numbers: leave the start out")
    if str(term) not in starts:
        source = term.resolved()["source"] or stream.defaults.get("source")
        weights = from_file(term)
        if weights is None and not isinstance(source, str):
            raise ValueError(f"{stream.name} names no source that {term.name} could be learned from: write for example "
                             f"{term.name}(source='omniglot'), or {term.name}(file='FILE') with what `lifelong "
                             "pretrain` made")
        starts[str(term)] = weights or Pretraining(term, make_source(str(source), options.data), device=where)
    start = starts[str(term)]
    if isinstance(start, Weights):
        about, said, seen = start.about, start.about["sha256"], frozenset(start.about["content"])
    else:
        about, said, seen = {"start": str(term), "model": start.model}, start.spec, frozenset(start.content)
    both = stream.content & seen
    if both and not options.overlap:
        raise OptionError(f"{term} was learned on {len(both)} of the classes that {stream.name} tests on, for example "
                          f"{min(both)}: use another source, or insist with overlap", "overlap")
    if stream.mean is not None:
        raise ValueError(f"{term} was learned on pixels as they are, and {stream.name} normalises their channels: use "
                         "a stream that does not")
    model = here("model", start) if isinstance(start, Weights) else expression.parse(str(start.model), "models")
    return {"model": str(about["model"]), "start": said, "code": expression.digests(model),
            "overlap": (len(both) if seen else "unknown") if both or not seen else None}


def _content(stream: Stream) -> str:
    """A digest of the examples, units and tasks of a stream."""
    found = hashlib.blake2b(digest_size=8)
    tensors = (stream.x, stream.y, stream.train, stream.test, stream.classes, stream.warp, stream.label)
    for tensor in tensors:
        said = (None, ()) if tensor is None else (tensor.dtype, tuple(tensor.shape))
        found.update(repr(said).encode())
        if tensor is not None:
            found.update(tensor.contiguous().numpy().data)
    facts = (tuple(stream.shape), stream.scenario, stream.ordered, stream.retention, stream.spare, stream.scale,
             stream.problem.name, stream.mean and tuple(stream.mean), stream.std and tuple(stream.std))
    found.update(repr(facts).encode())
    return found.hexdigest()


# ---- checks


def _checked(specs: Sequence[Spec], learners: Learners) -> frozenset[str]:
    """The frames of specs that cannot be lanes of one stack, found by trying a step of every stack.

    Raises:
        ValueError: a spec cannot be trained on the stream.
    """
    groups: dict[str, list[Spec]] = {}
    for spec in specs:
        with kept():
            if _fits(spec, learners):
                groups.setdefault(spec.frame, []).append(spec)
    alone = {spec.frame for spec in specs} - set(groups)
    for frame, group in groups.items():
        try:
            _probe(group, learners)
        except ValueError:
            alone.add(frame)
            for spec in group:
                _probe([spec], learners)
    return frozenset(alone)


def _probe(stack: Sequence[Spec], learners: Learners) -> None:
    n = len(stack) * learners.stream.n_seeds
    try:
        with kept():
            checks.probe(learners.lanes(stack, sorted({0, n - 1})), learners.budget)
    except checks.Impure as error:
        raise checks.Impure(f"{stack[0].strategy}: {error}") from error


def _fits(spec: Spec, learners: Learners) -> bool:
    """Whether the seeds of a spec are trained as lanes; ValueError if its learner does not fit the stream."""
    name, stream, made, learner = spec.strategy, learners.stream, learners.made(spec), learners.learner(spec)
    net, problem = learner.net if isinstance(learner, GradientLearner) else None, stream.problem
    if (hasattr(made, "learn_task") or (learner and learner.boundaries)) and not stream.boundaries:
        raise ValueError(f"{name} must be told where a task ends, and this stream does not tell")
    if not problem.classes and getattr(made, "classes", False) is True:
        raise ValueError(f"{name} learns classes, and the targets of {problem.name} are numbers: use another strategy, "
                         "for example er or ewc")
    if spec.dtype == "bfloat16" and not problem.scaled:
        raise OptionError(f"dtype='bfloat16' rounds examples, and {problem.name} leaves them as they are: leave it out",
                          "dtype")
    if spec.dtype == "bfloat16" and (learner is None or (net and net.dtype is None)):
        raise OptionError(f"{name} trains a network of its own, which dtype='bfloat16' would leave as it is: leave it "
                          "out", "dtype")
    if stream.augment != NONE and net is None:
        raise OptionError(f"{name} fetches its examples itself, as they are, so {stream.augment} would not reach it: "
                          "use augment='none'", "augment")
    if net and isinstance(learner, GradientLearner) and learners.budget.batch_size == 1 and not any(
            part.recall for part in learner.parts.values()) and not all(map(learner.start.frozen, net.still)):
        raise OptionError(f"{name} trains batch normalisation, which needs several examples in a batch: batch_size "
                          "must be 2 or more, or the network without it, for example norm='group'", "batch_size")
    if learner and learner.told and stream.scenario != "task":
        raise OptionError(f"{name} must be told the task to answer, and this stream is {stream.scenario}-incremental: "
                          "use scenario='task'", "scenario")
    return learner is not None
