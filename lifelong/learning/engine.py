"""The training loop: trains task by task, evaluates after every task, and can resume at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import State, out_of_range
from lifelong.learning.schedule import Budget, batches, plan, whole_task
from lifelong.vmap import tree

# Examples that are scored at once, over all lanes: as many as fit a CPU's cache, or keep a GPU busy. This holds for
# examples of at most USUAL numbers. Batches of larger examples have a quarter as many numbers, because the network's
# layers grow with the examples and fill the memory.
EVALUATED = {"cpu": 4096, "cuda": 65536}
USUAL = 784
Tell = Callable[[int, int, int], None]
Save = Callable[[dict[str, Any]], None]


@dataclass
class Measured:
    """The measurements of a stack so far, as plain tensors that a checkpoint can hold.

    Attributes:
        place: [M, 2], row (the number of tasks learned) and task of every evaluation of a task so far.
        values: [K, L, M] float64, accuracies: in the stream's scenario, with the task given, and, if the stream has
            `retention` (K = 3), on the task's training rows. Tasks that are not evaluated take no memory.
        loss: [L, T], mean training loss of each task.
        diverged: [L, 2], task and step at which the first loss, score or parameter was found that is not finite; -1 if
            there was none.
        curve: [E, L, T] accuracies inside tasks, for the tasks that are evaluated after the task; NaN for the others.
        curve_step: [E, 2], the task and the number of its steps after which each entry of `curve` was measured.
        steps: [L, T], steps made on each task; 0 if it was not learned to its end.
    """

    place: Tensor
    values: Tensor
    loss: Tensor
    diverged: Tensor
    curve: Tensor
    curve_step: Tensor
    steps: Tensor

    @classmethod
    def nothing(cls, n_lanes: int, n_tasks: int, retention: bool = False) -> Measured:
        """No measurements, as before the first evaluation."""
        return cls(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(2 + retention, n_lanes, 0, dtype=torch.float64),
                   torch.full((n_lanes, n_tasks), torch.nan, dtype=torch.float64), torch.full((n_lanes, 2), -1),
                   torch.zeros(0, n_lanes, n_tasks, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.int64),
                   torch.zeros(n_lanes, n_tasks, dtype=torch.int64))

    @property
    def accuracy(self) -> Tensor:
        """Accuracy in the stream's scenario, [L, 1 + T, T] float64; NaN where not evaluated."""
        return self._table(0)

    @property
    def told(self) -> Tensor:
        """Accuracy with the task given at test time, shaped as `accuracy`."""
        return self._table(1)

    @property
    def retained(self) -> Tensor:
        """Accuracy on the training rows of the tasks so far, shaped as `accuracy`; NaN without `retention`."""
        return self._table(2)

    def _table(self, kind: int) -> Tensor:
        n_lanes, n_tasks = self.loss.shape
        table = torch.full((n_lanes, 1 + n_tasks, n_tasks), torch.nan, dtype=torch.float64)
        if kind < len(self.values):
            table[:, self.place[:, 0], self.place[:, 1]] = self.values[kind]
        return table

    def note(self, row: int, tasks: range, *accuracies: Tensor) -> None:
        """Adds accuracies [L, len(tasks)] of each kind on `tasks` after `row` learned tasks; NaN for diverged lanes."""
        alive = self.diverged[:, :1] < 0
        found = torch.stack([torch.where(alive, accuracy, torch.nan) for accuracy in accuracies])
        self.values = torch.cat([self.values, found], -1)
        self.place = torch.cat([self.place, torch.tensor([[row, task] for task in tasks])])

    def inside(self, task: int, step: int, tasks: range, accuracy: Tensor) -> None:
        """Adds the accuracy on `tasks`, [L, len(tasks)], after `step` steps of task `task` to the curve."""
        point = torch.full((1, *self.loss.shape), torch.nan, dtype=torch.float64)
        point[0, :, tasks.start:tasks.stop] = accuracy
        self.curve = torch.cat([self.curve, point])
        self.curve_step = torch.cat([self.curve_step, torch.tensor([[task, step]])])

    def lost(self, lanes: Tensor, task: int, step: int) -> None:
        """Marks `lanes` [L] bool as diverged, unless they already were."""
        new = lanes & (self.diverged[:, 0] < 0)
        self.diverged[new] = torch.tensor([task, step])

    @property
    def over(self) -> bool:
        """Whether every lane has diverged."""
        return bool((self.diverged[:, 0] >= 0).all())


@torch.no_grad()
def evaluate(lanes: Lanes, state: State, tasks: range | None = None, learned: bool = False) -> tuple[Tensor, Tensor]:
    """Accuracies of all lanes on some tasks, in the stream's scenario and with the task given: [L, len(tasks)] each.

    They are NaN where a score is NaN or infinite; minus infinity is accepted from learners that are no network, for
    classes that they do not know. The evaluation draws no random numbers, so it cannot change training.

    Args:
        lanes, state: the lanes and their state.
        tasks: the tasks to evaluate; None evaluates all.
        learned: whether to evaluate on the tasks' training rows instead of their test rows.
    """
    stream, at = lanes.stream, torch.as_tensor(list(lanes.at))
    tasks = range(stream.n_tasks) if tasks is None else tasks
    asked = (stream.train if learned else stream.test)[:, tasks.start:tasks.stop]
    n_tasks, m = asked.shape[1:]
    first = tasks.start * m
    task = torch.arange(tasks.start, tasks.stop, device=lanes.device).repeat_interleave(m)
    rows, classes = (t[at].to(lanes.device) for t in (asked.flatten(1), stream.classes))
    seen = {k: v for k, v in state.items() if k != "optimizer"}
    size = max(256, EVALUATED[lanes.device.type] // lanes.n)
    if math.prod(stream.shape) > USUAL:
        size = max(16, size * USUAL // (4 * math.prod(stream.shape)))
    # A learner that is given the task predicts for one task at a time.
    cuts = range(0, n_tasks * m, size) if not lanes.learner.told else [t * m + a for t in range(n_tasks)
                                                                       for a in range(0, m, size)]
    free: list[Tensor] = []
    given: list[Tensor] = []
    bad = torch.zeros(lanes.n, dtype=torch.bool, device=lanes.device)
    for a, b in zip(cuts, [*cuts[1:], n_tasks * m], strict=True):
        part, which = rows[:, a:b], task[a:b]
        x, y = (lanes.fetch(part if lanes.stacked else part[0]) if learned else
                lanes.examined(part, first + a, first + b))
        scores = lanes.predict(seen, x, which[0]).view(lanes.n, b - a, -1)
        y, real, score = y.view(lanes.n, b - a, *stream.y.shape[1:]), part >= 0, stream.problem.score
        told = answered = torch.where(real, score(scores, y), 0.0)
        if stream.scenario != "domain":
            told = torch.where(real, score(scores.masked_fill(~classes[:, which], -torch.inf), y), 0.0)
        bad |= (~scores.isfinite() if lanes.answers_by_network else out_of_range(scores)).flatten(1).any(1)
        free.append(told if stream.scenario == "task" else answered)
        given.append(told)
    count = (rows >= 0).unflatten(1, (n_tasks, m)).sum(-1)

    def mean(scored: list[Tensor]) -> Tensor:
        found = torch.cat(scored, 1).double().unflatten(1, (n_tasks, m)).sum(-1)
        return torch.where(bad.unsqueeze(-1), torch.nan, found / count).cpu()

    return mean(free), mean(given)


@dataclass
class Rhythm:
    """The schedule of evaluations and checkpoints during training.

    Attributes:
        eval_every: number of steps between evaluations inside a task; 0 evaluates after tasks only.
        save_every: seconds between checkpoints, which are made after a step or a task, but not at the end of training;
            0 makes one after every step and every task, including the last.
        save: receives a checkpoint, nested dicts of tensors and numbers; None saves nothing.
        tell: called with the task, the step and the number of steps of the task.
        saved: time of the last checkpoint, in seconds of `time.monotonic`.
    """

    eval_every: int = 0
    save_every: float = 30.0
    save: Save | None = None
    tell: Tell = field(default=lambda task, step, steps: None)
    saved: float = field(default_factory=time.monotonic, init=False)

    def due(self, ended: bool = False) -> bool:
        """Whether a checkpoint is due; `ended` says whether training has ended."""
        if self.save is None or not self.save_every:
            return self.save is not None
        return not ended and time.monotonic() - self.saved >= self.save_every

    def keep(self, checkpoint: dict[str, Any]) -> None:
        """Saves a checkpoint."""
        if self.save is not None:
            self.save(checkpoint)
            self.saved = time.monotonic()


def train(lanes: Lanes, budget: Budget, rhythm: Rhythm = Rhythm(), resume: dict[str, Any] | None = None) -> Measured:
    """Trains all lanes on their stream and evaluates the tasks that the stream selects.

    If a lane diverges, its later measurements are NaN and the other lanes continue.

    Args:
        lanes: the lanes to train.
        budget: number of epochs or steps, and batch size.
        rhythm: checkpoints, progress and evaluations inside tasks.
        resume: a checkpoint given to `rhythm.save`; the results are bit-identical to those without interruption.
    """
    n_tasks = lanes.stream.n_tasks
    if resume is None:
        state, task, step = lanes.init(), 0, 0
        measured = Measured.nothing(lanes.n, n_tasks, lanes.stream.retention)
        _measure(lanes, state, measured, 0, 0)
    else:
        state = lanes.resume(resume["state"])
        task, step, measured = resume["task"], resume["step"], Measured(**resume["measured"])
    for now in range(task, n_tasks):
        state = _one_task(lanes, budget, rhythm, state, measured, now, step)
        step = 0
        if measured.over:
            break
    return measured


def _measure(lanes: Lanes, state: State, measured: Measured, row: int, step: int) -> None:
    """Evaluates the tasks that the stream selects after `row` learned tasks, the last one learned in `step` steps."""
    tasks = lanes.stream.evaluated(row)
    if not tasks:
        return
    found = [*evaluate(lanes, state, tasks)]
    measured.lost(found[0].isnan().all(1), max(row - 1, 0), step)
    if lanes.stream.retention:
        met = range(tasks.start, min(tasks.stop, row))
        found.append(torch.full_like(found[0], torch.nan))
        if met:
            found[-1][:, :len(met)] = evaluate(lanes, state, met, learned=True)[0]
    measured.note(row, tasks, *found)


def _one_task(lanes: Lanes, budget: Budget, rhythm: Rhythm, state: State, measured: Measured, task: int,
              first: int) -> State:
    """Trains on one task from step `first`, ends the task, and evaluates."""
    todo = plan(lanes.stream, lanes.seeds, task, lanes.learner.data, budget)
    length = todo.length[torch.as_tensor(list(lanes.at))]
    shortest = int(length.min())
    total = torch.zeros(lanes.n, dtype=torch.float64) if first == 0 else measured.loss[:, task].clone()
    on_cpu = lanes.device.type == "cpu"  # on other devices a read waits for the device, so 64 losses are read at once
    unread: list[Tensor] = []

    def read(step: int) -> None:
        losses = torch.stack(unread).reshape(len(unread), lanes.n).double().cpu()
        bad = ~losses.isfinite()
        for i in bad.any(1).nonzero().flatten().tolist():
            measured.lost(bad[i], task, step - len(unread) + 1 + i)
        measured.lost(~lanes.finite(state), task, step)
        for row in losses:  # one by one, so that the sum does not depend on the checkpoints
            total.add_(row)
        unread.clear()

    if first == 0 and lanes.learner.begin_task and lanes.stream.boundaries:
        state = lanes.begin_task(state, whole_task(lanes, task, when="begin"))
    for step, batch in batches(lanes, todo, task, first):
        if step < shortest:
            state, logs = lanes.observe(state, batch)
        else:  # lanes with fewer steps keep their state
            before = tree(torch.clone, state)
            after, logs = lanes.observe(state, batch)
            going = (step < length).to(lanes.device)
            state = tree(partial(_where, going), after, before)
            logs = {k: torch.where(going, v, 0.0) for k, v in logs.items()}
        if "loss" in logs:
            unread.append(logs["loss"])
            broken = on_cpu and not math.isfinite(float(logs["loss"].sum()))
            if broken or len(unread) == 64 or step == todo.steps - 1:
                read(step)
                if measured.over:
                    return state
        done = step + 1
        rhythm.tell(task, done, todo.steps)
        if rhythm.eval_every and done % rhythm.eval_every == 0 and done < todo.steps:
            _measure_inside(lanes, state, measured, task, done)
        if done < todo.steps and rhythm.due():
            if unread:
                read(step)
            measured.loss[:, task] = total  # the sum so far; it becomes a mean below
            rhythm.keep(_checkpoint(state, task, done, measured))
    measured.loss[:, task], measured.steps[:, task] = total / length, length
    if lanes.stream.boundaries:
        state = lanes.end_task(state, whole_task(lanes, task))
    _measure(lanes, state, measured, 1 + task, todo.steps)
    if rhythm.due(ended=task + 1 == lanes.stream.n_tasks):
        rhythm.keep(_checkpoint(state, task + 1, 0, measured))
    return state


def _where(lanes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(lanes.reshape(lanes.shape + (1,) * (new.dim() - 1)), new, old)


def _measure_inside(lanes: Lanes, state: State, measured: Measured, task: int, step: int) -> None:
    tasks = lanes.stream.evaluated(1 + task)
    if tasks:
        measured.inside(task, step, tasks, evaluate(lanes, state, tasks)[0])


def _checkpoint(state: State, task: int, step: int, measured: Measured) -> dict[str, Any]:
    return {"state": state, "task": task, "step": step, "measured": dict(vars(measured))}
