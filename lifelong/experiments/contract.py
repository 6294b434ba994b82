"""Checks that every strategy must pass, also for the tests of plug-ins: `assert not failures("./mine.py:mine")`."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.data.stream import Stream
from lifelong.experiments.compose import compose
from lifelong.experiments.objects import object_checks
from lifelong.learning.composition import GradientLearner, gradient_learner
from lifelong.learning.engine import Measured, Rhythm, evaluate, train
from lifelong.learning.imperative import Training
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Initialization, Learner, State
from lifelong.learning.schedule import Budget, batches, plan, whole_task
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net
from lifelong.randomness import generator
from lifelong.spec import catalogue, expression
from lifelong.spec.expression import Term
from lifelong.vmap import resolved, tree


class Impure(ValueError):
    """A strategy that cannot be lifted to many seeds; the message says which rule it breaks, and where."""


_WRITES = "it writes into a tensor that it was given: make a new one"
_KEEPS = ("it keeps something outside its state, in a variable that a hook changes, so that seeds mix and nothing "
          "resumes: return it as the part's state from `init`, `step` or `task`")
_RULES = {
    "calling .item()": "it reads a number out of a tensor (`.item()`, `int(t)`, `if t:`): use torch.where",
    "data-dependent control flow": "it reads a number out of a tensor (`.item()`, `int(t)`, `if t:`): use torch.where",
    "random operation": "it draws random numbers of its own: ask for them with `draws` and use `view.u`",
    "inplace arithmetic": _WRITES,
    "doesn't match the broadcast shape": _WRITES,
    "modified by an inplace operation": _WRITES,
    "used in an in-place operation": _WRITES,
    "may have escaped from inside a function being vmapped": _KEEPS,
    "expected Tensor as element": "the state holds something other than tensors: it is a dict of tensors",
    "dynamic shape": "the shape of a result depends on values (boolean-mask indexing, nonzero): use torch.where, topk",
    "must only return Tensors": "it returns something other than tensors: state is a dict of tensors",
    "expected to return only": "it returns something other than tensors: state is a dict of tensors",
    "is not iterable": "a hook returns None or a number where a dict of tensors or a tensor was needed",
    "'NoneType' object": "something is None: `view.u` without `draws`, a field of the view that this hook does not "
                         "have, or what a hook forgot to return",
}


def explain(error: BaseException) -> str:
    """One sentence on an error, with the file, line and function of the user's code where it occurred."""
    frames = traceback.extract_tb(error.__traceback__)
    own = str(Path(__file__).resolve().parents[1])
    theirs = [f for f in frames if own not in f.filename and "site-packages" not in f.filename]
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno}, in {theirs[-1].name})" if theirs else ""
    text = " ".join(str(error).split())
    for sign, rule in _RULES.items():
        if sign in text:
            return f"{rule}{where}"
    return f"{type(error).__name__}: {text[:300]}{where}"


def probe(lanes: Lanes, budget: Budget) -> None:
    """Tries one step, the end of a task and a prediction of a stack on a few rows.

    Raises:
        Impure: the strategy cannot be lifted.
        ValueError: the strategy refuses the stream or the network.
    """
    few = Budget(min(budget.batch_size, 4), 1, 1)
    try:
        _guarded(lanes, few)
        state = lanes.init()
        todo = plan(lanes.stream, lanes.seeds, 0, "task", few)
        for _, batch in batches(lanes, todo, 0, 0):
            state, _ = lanes.observe(state, batch)
        if lanes.stream.boundaries:
            task = whole_task(lanes, 0, 8)
            state = lanes.end_task(state, task)
        lanes.each(lambda learner, pool, s, b: predict(learner, s, pool, pool.fetch(b.rows)[0], b.task))(state, batch)
        _forgets(lanes, few)
    except ValueError as error:
        if isinstance(error, Impure) or (error.__cause__ is None and "vmap" not in str(error)):
            raise
        raise Impure(explain(error)) from error
    except Exception as error:
        raise Impure(explain(error)) from error


def predict(learner: Learner, state: State, pool: Pool, x: Tensor, task: Tensor) -> Tensor:
    """The scores of examples of one task; a learner that needs the task is given it."""
    return learner.predict(state, pool, x, task) if learner.told else learner.predict(state, pool, x)


def _tensors(value: Any) -> Iterator[Tensor]:
    value = resolved(value)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, tuple, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _place(f: Callable[..., Any]) -> str:
    code = getattr(f, "__code__", None)
    return f" ({Path(code.co_filename).name}, {code.co_name}, from line {code.co_firstlineno})" if code else ""


_HOOKS = ("init", "params", "begin", "recall", "criterion", "loss", "grads", "step", "task", "weights", "predict")


def _guarded(lanes: Lanes, budget: Budget) -> None:
    """Runs a step and the end of a task of the first lane alone; raises Impure if a hook modifies its arguments."""
    one = replace(lanes, at=lanes.at[:1], hyper={k: v[:1] for k, v in lanes.hyper.items()}, stacked=False)
    learner, pool = one.learner, one.pool

    def guarded(f: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            watched = [*_tensors(given), *_tensors(vars(pool))]
            before = [t._version for t in watched]
            out = f(*given)
            if before != [t._version for t in watched]:
                raise Impure(_WRITES + _place(f))
            return out

        return call

    observe, end_task = learner.observe, guarded(learner.end_task)
    if not isinstance(learner, GradientLearner):
        observe = guarded(observe)
    else:  # the step itself updates the parameters in place, so only the arguments of its parts are guarded
        parts = {}
        for name, part in learner.parts.items():
            hooks: dict[str, Any] = {hook: guarded(f) for hook in _HOOKS if (f := getattr(part, hook))}
            parts[name] = replace(part, **hooks)
        learner = gradient_learner(learner.net, learner.optimizer, parts, learner.start)
        observe, end_task = learner.observe, learner.end_task
    state = one.init()
    for _, batch in batches(one, plan(one.stream, one.seeds, 0, learner.data, budget), 0, 0):
        state, _ = observe(state, pool, batch)
    if one.stream.boundaries:
        state = end_task(state, pool, whole_task(one, 0, 8))
    guarded(partial(predict, learner))(state, pool, pool.fetch(batch.rows)[0], batch.task)


def _forgets(lanes: Lanes, budget: Budget) -> None:
    """Raises Impure if the first step of one lane, repeated after the end of a task, gives another result."""
    one = replace(lanes, at=lanes.at[:1], hyper={k: v[:1] for k, v in lanes.hyper.items()}, stacked=False)
    learner, pool = one.learner, one.pool
    batch = next(batches(one, plan(one.stream, one.seeds, 0, learner.data, budget), 0, 0))[1]
    state, _ = learner.observe(one.init(), pool, batch)
    once = tree(torch.clone, state)
    if one.stream.boundaries:
        learner.end_task(state, pool, whole_task(one, 0, 8))
    for a, b in zip(_tensors(once), _tensors(learner.observe(one.init(), pool, batch)[0]), strict=True):
        if a.shape == b.shape and not torch.allclose(a, b, 1e-5, 1e-6, equal_nan=True):
            raise Impure(_KEEPS)


# ---- the contract


@dataclass(frozen=True)
class Subject:
    """A strategy under test: its terms, the number of rows of a task, and the network."""

    terms: list[Term]
    length: int = 12
    net: Net = field(default_factory=lambda: mlp((8,), 6, hidden=(12,)))

    def make(self, net: Any, seed: int = 0) -> Callable[[Mapping[Any, Any]], Any]:
        """(hyper) -> learner, with plain gradient descent."""
        sgd = expression.parse("sgd(lr=0.05)", "optimizers")[0]
        optimizer = expression.build(sgd, {})
        context = {"net": net, "shape": (8,), "n_classes": 6, "n_tasks": 3, "seed": seed, "device": torch.device("cpu"),
                   "training": Training(sgd, BUDGET, told=False)}
        if any(term.learned for term in self.terms):  # untrained: only the terms added to it are checked
            context["start"] = Initialization(lambda net, seed: net.init(generator(seed, "init")), net=net)
        return lambda hyper: compose(self.terms, context, optimizer, hyper)

    def lanes(self, at: list[int], stacked: bool = True, dtype: torch.dtype = torch.float64,
              hyper: Mapping[Any, list[float]] | None = None) -> Lanes:
        """A stack on the tiny stream; `at` are the seeds of its lanes."""
        distinct = sorted(set(at))
        told = getattr(self.make(self.net)({}), "told", False)
        stream = tiny(distinct, scenario="task" if told else "class", length=self.length)
        return Lanes(stream, distinct, [distinct.index(s) for s in at], self.make(self.net), hyper or {}, dtype=dtype,
                     stacked=stacked)


BUDGET = Budget(batch_size=5, epochs=1)


def tiny(seeds: list[int], boundaries: bool = True, scenario: str = "class", length: int = 24) -> Stream:
    """Six Gaussian classes in eight dimensions, as three tasks of two classes; task lengths differ between seeds.

    A task has at most `length` rows, an even number up to 24.
    """
    g = generator("checks", "tiny")
    y = torch.arange(6).repeat_interleave(20)
    means, noise = (torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (6, 120))
    x = 2 * means[y] + noise
    train, test = torch.full((len(seeds), 3, length), -1), torch.zeros(len(seeds), 3, 16, dtype=torch.int64)
    for i, seed in enumerate(seeds):
        for task in range(3):
            rows = torch.arange(task * 40, task * 40 + 40).view(2, 20)
            own = rows[:, :length // 2].flatten()[:length - seed % 3]
            train[i, task, :len(own)] = own
            test[i, task] = rows[:, 12:].flatten()
    classes = torch.eye(3, dtype=torch.bool).repeat_interleave(2, 1).expand(len(seeds), 3, 6).clone()
    return Stream("tiny-v1", x, y, train, test, classes, (8,), scenario, boundaries)


def _steps(lanes: Lanes, n_tasks: int = 3, budget: Budget = BUDGET) -> Iterator[State]:
    """The states of a stack after every step and after the end of every task."""
    state = lanes.init()
    for task in range(n_tasks):
        todo = plan(lanes.stream, lanes.seeds, task, lanes.learner.data, budget)
        for k, batch in batches(lanes, todo, task, 0):
            if k < int(todo.length.min()):
                state, _ = lanes.observe(state, batch)
                yield state
        state = lanes.end_task(state, whole_task(lanes, task))
        yield state


def _last(lanes: Lanes, n_tasks: int = 3, budget: Budget = BUDGET) -> State:
    last: State = tree(torch.clone, deque(_steps(lanes, n_tasks, budget), maxlen=1)[0])
    return last


def _difference(a: Any, b: Any) -> float:
    """The largest relative difference between two states; infinite if shapes, types or integers differ."""
    if isinstance(a, dict) != isinstance(b, dict):
        return float("inf")
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return float("inf")
        return max((_difference(a[k], b[k]) for k in a), default=0.0)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not a.dtype.is_floating_point:
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    gap = float(((a - b).abs() / b.abs().clamp(min=1)).max())
    return gap if gap == gap else float("inf")


def _lane(state: State, i: int) -> State:
    one: State = tree(lambda leaf: leaf[i], state)
    return one


def state_is_tensors(subject: Subject) -> str | None:
    """The state is nested dicts of tensors with constant shapes and types, so its memory is bounded."""
    first = None
    for state in chain([subject.lanes([0, 1]).init()], _steps(subject.lanes([0, 1]))):
        kinds: list[Any] = []
        bad: list[str] = []

        def look(leaf: Any, kinds: list[Any] = kinds, bad: list[str] = bad) -> None:
            if isinstance(leaf, Tensor):
                kinds.append((leaf.shape, leaf.dtype))
            else:
                bad.append(type(leaf).__name__)

        tree(look, state)
        if bad:
            return f"the state holds a {bad[0]}"
        first = first or kinds
        if kinds != first:
            return "the shapes or types of the state change from step to step"
    return None


def observe_is_pure(subject: Subject) -> str | None:
    """`observe` does not modify its arguments, and repeated calls give the same result, also after other calls."""
    lanes = subject.lanes([0], stacked=False)
    learner, state = lanes.learner, lanes.init()
    for _, batch in batches(lanes, plan(lanes.stream, [0], 0, learner.data, BUDGET), 0, 0):
        before, rows = tree(torch.clone, state), batch.rows.clone()
        one, _ = learner.observe(state, lanes.pool, batch)
        one = tree(torch.clone, one)
        two, _ = learner.observe(state, lanes.pool, batch)
        if _difference(before, state) or not torch.equal(rows, batch.rows):
            return "observe writes into the state or the batch that it was given"
        if _difference(one, two):
            return "observe gives two results for the same state and batch"
        state = two
    state, first = lanes.init(), next(batches(lanes, plan(lanes.stream, [0], 0, learner.data, BUDGET), 0, 0))[1]
    one = tree(torch.clone, learner.observe(state, lanes.pool, first)[0])
    learner.end_task(learner.observe(lanes.init(), lanes.pool, first)[0], lanes.pool, whole_task(lanes, 0))
    if _difference(one, learner.observe(lanes.init(), lanes.pool, first)[0]):
        return _KEEPS
    return None


def one_equals_many(subject: Subject) -> str | None:
    """A seed trained alone gives the same result as in a stack.

    In float64 to 1e-10 over the whole stream, in float32 to 1e-5 over the first steps, before rounding errors grow;
    integers, such as the remembered rows, are equal.
    """
    for dtype, bound, most in ((torch.float64, 1e-10, None), (torch.float32, 1e-5, 5)):
        many = _steps(subject.lanes([0, 3, 6], dtype=dtype))  # seeds with tasks of equal length
        alone = _steps(subject.lanes([3], stacked=False, dtype=dtype))
        for step, (a, b) in enumerate(zip(many, alone, strict=True)):
            if (gap := _difference(_lane(a, 1), b)) > bound:
                return f"after step {step + 1} a seed differs by {gap:.1e} from its run alone in {dtype}"
            if step == most:
                break
    return None


def seeds_do_not_mix(subject: Subject) -> str | None:
    """A seed gives the same result in a stack as alone, whether it has more or fewer steps than the other seed."""
    seeds = [0, 2]  # the second has fewer rows: two steps per task, and the first has three
    both, states = _run(subject.lanes(seeds))
    for lane, (seed, other) in enumerate(zip(seeds, reversed(seeds), strict=True)):
        alone, state = _run(subject.lanes([seed], stacked=False))
        if not torch.equal(both.accuracy[lane], alone.accuracy[0]) or not torch.allclose(
                both.loss[lane], alone.loss[0], 1e-9, 1e-12, equal_nan=True) or (
                _difference(_lane(states, lane), state) > 1e-9):
            return f"seed {seed} ends differently beside seed {other} than alone"
    return None


def _run(lanes: Lanes, resume: dict[str, Any] | None = None) -> tuple[Measured, State]:
    """The measurements and the final state of a run."""
    last: deque[dict[str, Any]] = deque(maxlen=1)
    measured = train(lanes, BUDGET, Rhythm(save_every=0.0, save=last.append), resume)
    return measured, last[0]["state"]


def resumes_to_the_same_bits(subject: Subject) -> str | None:
    """A run resumed from any checkpoint gives the result of the uninterrupted run."""
    taken: list[dict[str, Any]] = []
    rhythm = Rhythm(save_every=0.0, save=lambda c: taken.append(tree(_copy, c)))
    whole = train(subject.lanes([0, 2]), BUDGET, rhythm)
    for checkpoint in taken[1:-1:4]:
        again, state = _run(subject.lanes([0, 2]), tree(_copy, checkpoint))
        if (not torch.equal(again.accuracy, whole.accuracy) or not torch.equal(again.loss, whole.loss)
                or _difference(state, taken[-1]["state"])):
            return f"resumed at task {checkpoint['task']}, step {checkpoint['step']}, it ends differently"
    return None


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def pads_do_not_count(subject: Subject) -> str | None:
    """The example fetched for padding (-1) in a short batch changes nothing and is never remembered."""
    lanes = subject.lanes([0], stacked=False)
    todo = plan(lanes.stream, [0], 0, lanes.learner.data, BUDGET)
    states = []
    for x, y in ((lanes.pool.x[:1], 0), (lanes.pool.x[:1] + 100, 5)):
        # Padding is fetched as the first example of the pool, which must have no effect.
        pool = replace(lanes.pool, x=torch.cat([x, lanes.pool.x[1:]]),
                       y=torch.cat([torch.tensor([y]), lanes.pool.y[1:]]))
        state = lanes.init()
        for _, batch in zip(range(2), (b for _, b in batches(lanes, todo, 0, 0)), strict=False):
            rows = torch.tensor([3, 4, 5, 6, -1])
            weight = torch.tensor([0.25] * 4 + [0.0], dtype=lanes.dtype)
            state, _ = lanes.learner.observe(state, pool, batch._replace(rows=rows, weight=weight))
        states.append(tree(torch.clone, state))
    if (gap := _difference(*states)) > 1e-12:
        return (f"what stands at a pad changes the state by {gap:.1e}: weight losses by `weight`, and remember only "
                "rows >= 0")
    return None


def predicts_scores(subject: Subject) -> str | None:
    """`predict` returns finite or minus infinite scores [n, C]; those of an example do not depend on the others."""
    lanes = subject.lanes([0], stacked=False)
    state, task = _last(lanes), torch.tensor(0)
    x, _ = lanes.pool.fetch(lanes.stream.test[0].flatten())
    scores = predict(lanes.learner, state, lanes.pool, x, task)
    if scores.shape != (len(x), 6):
        return f"predict must return [n, C] = [{len(x)}, 6], got {list(scores.shape)}"
    if bool(scores.isnan().any()):
        return "predict returns NaN"
    if not torch.allclose(scores[:3], predict(lanes.learner, state, lanes.pool, x[:3], task), 1e-9, 1e-9):
        return "an example's scores depend on the examples beside it"
    return None


def learns(subject: Subject) -> str | None:
    """After the first task its two classes, which are easy to separate, are classified better than by chance."""
    lanes = subject.lanes([0, 3, 6])  # seeds with tasks of equal length
    accuracy = float(evaluate(lanes, _last(lanes, 1, BUDGET._replace(epochs=5)))[0][:, 0].mean())
    if accuracy < 0.6:
        return f"after task 0 its accuracy is {accuracy:.2f}; two classes, each easy to tell"
    return None


def settings_are_lanes(subject: Subject) -> str | None:
    """Real-valued hyper-parameters may differ between lanes, and each lane gives the result of its run alone."""
    for i, term in enumerate(subject.terms):
        for name, value in term.resolved().items():
            if not catalogue.is_real(term.factory, name) or not isinstance(value, float):
                continue
            values = [value, value * 0.5]
            many = subject.lanes([0, 0], hyper={(i, name): values})
            try:
                a = [tree(torch.clone, state) for _, state in zip(range(4), _steps(many), strict=False)]
            except Exception as error:
                return f"{name} cannot be swept in one stack, each value will be a run by itself: {explain(error)}"
            for lane, v in enumerate(values):
                alone = subject.lanes([0], stacked=False, hyper={(i, name): [v]})
                for state, b in zip(a, _steps(alone), strict=False):
                    if (gap := _difference(_lane(state, lane), b)) == float("inf"):
                        return (f"with {name}={v:g} the state of a lane has other shapes, types or integers than that "
                                f"of its run alone, in which {name} is no tensor: make state from parameters, as in "
                                "p.new_zeros(())")
                    if gap > 1e-9:
                        return f"with {name}={v:g} a lane differs by {gap:.1e} from its run alone"
    return None


CHECKS: tuple[Callable[[Subject], str | None], ...] = (
    state_is_tensors, observe_is_pure, one_equals_many, seeds_do_not_mix, resumes_to_the_same_bits, pads_do_not_count,
    predicts_scores, learns, settings_are_lanes,
)


def run_checks(strategy: str | list[Term]) -> Iterator[tuple[str, str | None]]:
    """(name of the check, error or None) for every check of the contract.

    Args:
        strategy: an expression, for example "./mine.py:my_strategy + ewc", or its terms.
    """
    subject = Subject(expression.parse(strategy) if isinstance(strategy, str) else strategy)
    if not isinstance(subject.make(mlp((8,), 6))({}), Learner):
        try:
            yield from object_checks(lambda: subject.make(mlp((8,), 6), 0)({}), tiny([0]), BUDGET)
        except Exception as error:
            yield "trains_and_resumes", explain(error)
        return
    for check in CHECKS:
        try:
            yield check.__name__, check(subject)
        except Exception as error:
            yield check.__name__, explain(error)


def failures(strategy: str | list[Term]) -> list[str]:
    """The failed checks of a strategy, a sentence each; empty if it passes all."""
    return [f"{name}: {wrong}" for name, wrong in run_checks(strategy) if wrong]
