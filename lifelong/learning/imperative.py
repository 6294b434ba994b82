"""Imperative learners: ordinary objects, trained one seed after another."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from lifelong.data.stream import Stream
from lifelong.learning.engine import Measured, Rhythm
from lifelong.learning.learner import out_of_range
from lifelong.learning.schedule import Budget, plan
from lifelong.randomness import generator
from lifelong.spec.expression import Term

METHODS = ("observe", "end_task", "predict")


class Training(NamedTuple):
    """The training settings of a run; an object with its own training loop may take them as argument `training`.

    Attributes:
        optimizer: the optimizer of the run: its `name`, and its hyper-parameters by `resolved()`.
        budget: batch size, and epochs or steps of every task; see `batch_size`, `epochs` and `steps`.
        told: whether the task is given at test time.
        dtype: precision of the examples.
    """

    optimizer: Term
    budget: Budget
    told: bool
    dtype: torch.dtype = torch.float32

    @property
    def batch_size(self) -> int:
        """Examples per step."""
        return self.budget.batch_size

    @property
    def steps(self) -> int | None:
        """Steps per task; None: `epochs` passes over its examples."""
        return self.budget.steps

    @property
    def epochs(self) -> int | None:
        """Passes over the examples of each task; None: `steps` steps."""
        return self.budget.epochs if self.budget.steps is None else None


class _Lost(Exception):
    """The loss is no longer finite."""


def train_object(make: Callable[[], Any], stream: Stream, at: int, seed: int, budget: Budget,
                 rhythm: Rhythm = Rhythm(), device: torch.device | str = "cpu",
                 resume: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> Measured:
    """Trains one object on the stream of one seed and evaluates the tasks that the stream selects.

    The object has `observe(x, y, task)`, called with every batch (task is None if boundaries are not told; a returned
    loss that is not finite stops the run), `end_task()`, and `predict(x) -> scores [n, C]`. With `state_dict()` and
    `load_state_dict(d)` of tensors and plain values it resumes from a checkpoint; without them its seed starts again,
    which gives the same result.

    An object with its own loop has `learn_task(x, y, task, tell)` instead of `observe` and `end_task`. It gets all
    examples of a task at once, in the stream's order, and calls `tell(loss)` after each of its steps. A `predict` with
    an argument `task` gets the number of the task in task-incremental streams and None in others.

    Args:
        make: builds the object; the global generators of torch, numpy and Python are seeded before.
        stream, at: the stream, and the index of the seed in it.
        seed: determines the object's random numbers and the order of its data.
        budget, rhythm: as in `engine.train`.
        device, dtype: device and precision of the examples.
        resume: a checkpoint given to `rhythm.save`.

    Raises:
        TypeError: a method is missing, or `predict` does not return scores [n, C].
    """
    _seed(seed)
    learner = make()
    for method in ("learn_task", "predict") if hasattr(learner, "learn_task") else METHODS:
        if not callable(getattr(learner, method, None)):
            raise TypeError(f"{type(learner).__name__} has no method {method}: an object that learns has "
                            "observe(x, y, task), end_task() and predict(x)")
    measured, first, begin = Measured.nothing(1, stream.n_tasks, stream.retention), 0, 0
    if resume is not None and resume.get("object") is not None:
        learner.load_state_dict(resume["object"])
        measured, first, begin = Measured(**resume["measured"]), resume["task"], resume["step"]
        set_generators(resume["generators"])
    else:
        _measure(learner, stream, at, device, dtype, measured, 0)
    one_task = _whole_task if hasattr(learner, "learn_task") else _one_task
    for task in range(first, stream.n_tasks):
        one_task(learner, stream, at, seed, budget, rhythm, device, dtype, measured, task, begin)
        begin = 0
        if measured.over:
            break
    return measured


def _one_task(learner: Any, stream: Stream, at: int, seed: int, budget: Budget, rhythm: Rhythm,
              device: torch.device | str, dtype: torch.dtype, measured: Measured, task: int, begin: int) -> None:
    pool = stream.pool(device, dtype).lane({k: v[0] for k, v in stream.lanes([at], device).items()})
    part = _only(stream, at)
    todo = plan(part, [seed], task, "task", budget)
    total = 0.0 if begin == 0 else float(measured.loss[0, task])
    for step in range(begin, todo.steps):
        rows = todo.rows[0, step * todo.batch_size:(step + 1) * todo.batch_size]
        x, y = pool.fetch(rows[rows >= 0].to(device))
        loss = learner.observe(x, y, task if stream.boundaries else None)
        number = _number(learner, loss)
        if loss is not None and not math.isfinite(number):
            measured.lost(torch.tensor([True]), task, step)
            return
        done = step + 1
        total += number
        rhythm.tell(task, done, todo.steps)
        if rhythm.eval_every and done % rhythm.eval_every == 0 and done < todo.steps:
            _inside(learner, stream, at, device, dtype, measured, task, done)
        if done < todo.steps and rhythm.due():
            measured.loss[0, task] = total  # the sum so far; it becomes a mean below
            rhythm.keep(_checkpoint(learner, measured, task, done))
    measured.loss[0, task], measured.steps[0, task] = total / max(todo.steps, 1), todo.steps
    if stream.boundaries:
        learner.end_task()
    _measure(learner, stream, at, device, dtype, measured, 1 + task)
    if rhythm.due(ended=task + 1 == stream.n_tasks):
        rhythm.keep(_checkpoint(learner, measured, task + 1, 0))


def _whole_task(learner: Any, stream: Stream, at: int, seed: int, budget: Budget, rhythm: Rhythm,
                device: torch.device | str, dtype: torch.dtype, measured: Measured, task: int, begin: int) -> None:
    """As `_one_task`, for an object with its own loop; no checkpoint is made inside a task."""
    pool = stream.pool(device, dtype).lane({k: v[0] for k, v in stream.lanes([at], device).items()})
    steps = plan(_only(stream, at), [seed], task, "task", budget).steps
    losses: list[float] = []

    def tell(loss: Any) -> None:
        if loss is None:
            raise TypeError(f"{type(learner).__name__}.learn_task must tell its loss, a number, got nothing")
        losses.append(_number(learner, loss, "learn_task must tell its loss, a number"))
        if not math.isfinite(losses[-1]):
            raise _Lost
        done = len(losses)
        rhythm.tell(task, min(done, steps), steps)  # with replay a task may take more steps than planned
        if rhythm.eval_every and done % rhythm.eval_every == 0 and done < steps:
            _inside(learner, stream, at, device, dtype, measured, task, done)

    rows = stream.train[at, task]
    try:
        learner.learn_task(*pool.fetch(rows[rows >= 0].to(device)), task, tell)
    except _Lost:
        measured.lost(torch.tensor([True]), task, len(losses) - 1)
        return
    measured.loss[0, task] = sum(losses) / len(losses) if losses else math.nan
    measured.steps[0, task] = len(losses)
    _measure(learner, stream, at, device, dtype, measured, 1 + task)
    if rhythm.due(ended=task + 1 == stream.n_tasks):
        rhythm.keep(_checkpoint(learner, measured, task + 1, 0))


def _inside(learner: Any, stream: Stream, at: int, device: torch.device | str, dtype: torch.dtype, measured: Measured,
            task: int, done: int) -> None:
    tasks = stream.evaluated(1 + task)
    if tasks:
        accuracy, _ = _accuracy(learner, stream, stream.test, tasks, at, device, dtype)
        measured.inside(task, done, tasks, accuracy.view(1, -1))


def _number(learner: Any, loss: Any, how: str = "observe must return its loss, a number, or nothing") -> float:
    try:
        return math.nan if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{type(learner).__name__}.{how}, got a {type(loss).__name__}") from None


def _only(stream: Stream, at: int) -> Any:
    """The attributes of a stream that `plan` reads, for one seed."""
    class One:
        train = stream.train[at:at + 1]
        n_tasks, ordered = stream.n_tasks, stream.ordered
    return One


def _measure(learner: Any, stream: Stream, at: int, device: torch.device | str, dtype: torch.dtype, measured: Measured,
             row: int) -> None:
    tasks = stream.evaluated(row)
    if not tasks:
        return
    found = [*_accuracy(learner, stream, stream.test, tasks, at, device, dtype)]
    measured.lost(found[0].isnan().all().view(1), max(row - 1, 0), 0)
    if stream.retention:
        met = range(tasks.start, min(tasks.stop, row))
        found.append(torch.full_like(found[0], torch.nan))
        found[-1][:len(met)] = _accuracy(learner, stream, stream.train, met, at, device, dtype)[0]
    measured.note(row, tasks, *(accuracy.view(1, -1) for accuracy in found))


@torch.no_grad()
def _accuracy(learner: Any, stream: Stream, asked: Tensor, tasks: range, at: int, device: torch.device | str,
              dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Accuracies on the rows `asked` [S, T, m] of some tasks, [len(tasks)] each.

    The first is that in the stream's scenario, the second that with the task given. The global generators keep their
    states.
    """
    before = generators()
    pool = stream.pool(device, dtype).lane({k: v[0] for k, v in stream.lanes([at], device).items()})
    free = torch.full((len(tasks),), torch.nan, dtype=torch.float64)
    told = free.clone()
    for i, task in enumerate(tasks):
        rows = asked[at, task]
        rows = rows[rows >= 0].to(device)
        hits = torch.zeros(2, dtype=torch.float64)
        for part in rows.split(4096):
            x, y = pool.fetch(part)
            scores = object_scores(learner, x, stream.n_classes, task if stream.scenario == "task" else None)
            score = stream.problem.score
            own = score(scores.masked_fill(~pool.classes[task], -torch.inf), y)
            anything = own if stream.scenario == "task" else score(scores, y)
            hits += torch.stack([anything.double().sum(), own.double().sum()]).cpu()
            if bool(out_of_range(scores).any()):
                hits += torch.nan
        free[i], told[i] = hits / len(rows)
    set_generators(before)
    return free, told


def object_scores(learner: Any, x: Tensor, n_classes: int, task: int | None) -> Tensor:
    """The scores [n, C] that an object predicts for `x`; raises TypeError for anything else."""
    told = {"task": task} if "task" in inspect.signature(learner.predict).parameters else {}
    scores = torch.as_tensor(learner.predict(x, **told)).to(x.device)
    if scores.shape != (len(x), n_classes):
        raise TypeError(f"{type(learner).__name__}.predict must return scores [n, C] = [{len(x)}, {n_classes}], got "
                        f"{list(scores.shape)}")
    return scores


def _seed(seed: int) -> None:
    number = int(torch.randint(2**31, (), generator=generator(seed, "object")))
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def constructed(make: Callable[[], Any], seed: int) -> tuple[Any, dict[str, Any]]:
    """The object of a seed, built before its training, and the states of the global generators after it was built.

    The global generators themselves keep their states. Training the object after they are set to the returned states
    is bit-identical to training an object that is built then.
    """
    before = generators()
    try:
        _seed(seed)
        return make(), generators()
    finally:
        set_generators(before)


def generators() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's global generators."""
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    numpy = [kind, torch.from_numpy(keys.astype(np.int64)), *rest]
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_generators(state: dict[str, Any]) -> None:
    """Sets the global generators to states that `generators` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _checkpoint(learner: Any, measured: Measured, task: int, step: int) -> dict[str, Any]:
    can = hasattr(learner, "state_dict") and hasattr(learner, "load_state_dict")
    return {"object": learner.state_dict() if can else None, "measured": dict(vars(measured)), "task": task,
            "step": step, "generators": generators() if can else None}
