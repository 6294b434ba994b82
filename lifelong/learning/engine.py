"""The only training loop of the project: task by task, measured after each, resumable at any step."""

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
from lifelong.learning.learner import State
from lifelong.learning.schedule import Budget, batches, plan, whole_task
from lifelong.vmap import tree

# Examples whose scores are made at once, over all lanes: on a CPU what its cache holds, else what fills the device.
# They are of 784 numbers or fewer; of larger ones there are a quarter of as many numbers, for a network's layers grow
# with them, and are what fills the memory.
EVALUATED = {"cpu": 4096, "cuda": 65536}
USUAL = 784
Tell = Callable[[int, int, int], None]
Save = Callable[[dict[str, Any]], None]


@dataclass
class Measured:
    """What is known of a stack so far; plain tensors, so that a checkpoint holds it.

    Attributes:
        accuracy: [L, 1 + T, T] float64, NaN where not measured.
        told: the same with the task told at test time.
        retained: the same on the training rows of the tasks so far, where the stream asks for it.
        loss: [L, T], mean training loss of each task.
        diverged: [L, 2], task and step of the first loss or score that was not finite; -1 where there was none.
        curve: [E, L, T] accuracies inside tasks, and `curve_step` [E, 2], the task and step each was measured after.
        steps: [L, T], steps made on each task; 0 where it was not learned to its end.
    """

    accuracy: Tensor
    told: Tensor
    retained: Tensor
    loss: Tensor
    diverged: Tensor
    curve: Tensor
    curve_step: Tensor
    steps: Tensor

    @classmethod
    def nothing(cls, n_lanes: int, n_tasks: int) -> Measured:
        """Before the first measurement."""
        rows = torch.full((n_lanes, 1 + n_tasks, n_tasks), torch.nan, dtype=torch.float64)
        return cls(rows, rows.clone(), rows.clone(), rows[:, 0].clone(), torch.full((n_lanes, 2), -1),
                   torch.zeros(0, n_lanes, n_tasks, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.int64),
                   torch.zeros(n_lanes, n_tasks, dtype=torch.int64))

    def note(self, row: int, accuracy: Tensor, told: Tensor) -> None:
        """Fills row `row` with [L, T]; lanes that have diverged stay NaN."""
        alive = (self.diverged[:, :1] < 0)
        self.accuracy[:, row] = torch.where(alive, accuracy, torch.nan)
        self.told[:, row] = torch.where(alive, told, torch.nan)

    def retain(self, row: int, accuracy: Tensor) -> None:
        """Fills the first tasks of row `row` of `retained` with [L, t]; lanes that have diverged stay NaN."""
        alive = (self.diverged[:, :1] < 0)
        self.retained[:, row, :accuracy.shape[1]] = torch.where(alive, accuracy, torch.nan)

    def lost(self, lanes: Tensor, task: int, step: int) -> None:
        """Marks `lanes` [L] bool as diverged, unless they already were."""
        new = lanes & (self.diverged[:, 0] < 0)
        self.diverged[new] = torch.tensor([task, step])

    @property
    def over(self) -> bool:
        """Whether every lane has diverged."""
        return bool((self.diverged[:, 0] >= 0).all())


@torch.no_grad()
def evaluate(lanes: Lanes, state: State, asked: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Accuracy of all lanes on all tasks now, as asked and with the task told: [L, T] each; NaN where scores are NaN.

    It draws no random number, so it cannot change what is learned.

    Args:
        lanes, state: who answers.
        asked: rows [S, T, m] of tasks 0 to T - 1; None: the test rows of all tasks.
    """
    stream, at = lanes.stream, torch.as_tensor(list(lanes.at))
    examined = asked is None
    asked = stream.test if asked is None else asked
    n_tasks, m = asked.shape[1:]
    task = torch.arange(n_tasks, device=lanes.device).repeat_interleave(m)
    rows, classes = (t[at].to(lanes.device) for t in (asked.flatten(1), stream.classes))
    seen = {k: v for k, v in state.items() if k != "optimizer"}
    size = max(256, EVALUATED[lanes.device.type] // lanes.n)
    if math.prod(stream.shape) > USUAL:
        size = max(16, size * USUAL // (4 * math.prod(stream.shape)))
    # A learner that is told the task answers one task's examples at a time.
    cuts = range(0, n_tasks * m, size) if not lanes.learner.told else [t * m + a for t in range(n_tasks)
                                                                       for a in range(0, m, size)]
    right: list[Tensor] = []
    right_told: list[Tensor] = []
    bad = torch.zeros(lanes.n, dtype=torch.bool, device=lanes.device)
    for a, b in zip(cuts, [*cuts[1:], n_tasks * m], strict=True):
        part, which = rows[:, a:b], task[a:b]
        x, y = lanes.examined(part, a, b) if examined else lanes.fetch(part if lanes.stacked else part[0])
        scores = lanes.predict(seen, x, which[0]).view(lanes.n, b - a, -1)
        y = y.view(lanes.n, b - a)
        told = answered = scores.argmax(-1) == y
        if stream.scenario != "domain":
            told = scores.masked_fill(~classes[:, which], -torch.inf).argmax(-1) == y
        bad |= scores.isnan().flatten(1).any(1)
        right.append((told if stream.scenario == "task" else answered) & (part >= 0))
        right_told.append(told & (part >= 0))
    count = (rows >= 0).unflatten(1, (n_tasks, m)).sum(-1)

    def share(hits: list[Tensor]) -> Tensor:
        found = torch.cat(hits, 1).unflatten(1, (n_tasks, m)).sum(-1)
        return torch.where(bad.unsqueeze(-1), torch.nan, found.double() / count).cpu()

    return share(right), share(right_told)


@dataclass(frozen=True)
class Rhythm:
    """When the loop looks up from its work.

    Attributes:
        eval_every: also measure every this many steps; 0: only after tasks.
        save_every: seconds between checkpoints inside a task; one is always made after a task.
        save: takes a checkpoint, nested dicts of tensors and numbers; None: nothing is saved.
        tell: called with task, step and steps of the task.
    """

    eval_every: int = 0
    save_every: float = 30.0
    save: Save | None = None
    tell: Tell = field(default=lambda task, step, steps: None)


def train(lanes: Lanes, budget: Budget, rhythm: Rhythm = Rhythm(), resume: dict[str, Any] | None = None) -> Measured:
    """Trains all lanes on their stream and measures every task after every task.

    A lane that diverges is stopped in place: its later measurements are NaN, its neighbours go on.

    Args:
        lanes: what is trained.
        budget: how long.
        rhythm: checkpoints, progress and measurements inside tasks.
        resume: a checkpoint that `rhythm.save` was given; training goes on to the same bits.
    """
    n_tasks = lanes.stream.n_tasks
    if resume is None:
        state, task, step = lanes.init(), 0, 0
        measured = Measured.nothing(lanes.n, n_tasks)
        measured.note(0, *_finite(evaluate(lanes, state), measured, 0, 0))
    else:
        state = lanes.resume(resume["state"])
        task, step, measured = resume["task"], resume["step"], Measured(**resume["measured"])
    for now in range(task, n_tasks):
        state = _one_task(lanes, budget, rhythm, state, measured, now, step)
        step = 0
        if measured.over:
            break
    return measured


def _finite(accuracies: tuple[Tensor, Tensor], measured: Measured, task: int, step: int) -> tuple[Tensor, Tensor]:
    measured.lost(accuracies[0].isnan().all(1), task, step)
    return accuracies


def _one_task(lanes: Lanes, budget: Budget, rhythm: Rhythm, state: State, measured: Measured, task: int,
              first: int) -> State:
    """Trains on one task from step `first` on, ends it, and measures."""
    todo = plan(lanes.stream, lanes.seeds, task, lanes.learner.data, budget)
    length = todo.length[torch.as_tensor(list(lanes.at))]
    shortest, saved = int(length.min()), time.monotonic()
    total = torch.zeros(lanes.n, dtype=torch.float64) if first == 0 else measured.loss[:, task].clone()
    on_cpu = lanes.device.type == "cpu"  # elsewhere reading a loss waits for the device, so 64 are read at once
    unread: list[Tensor] = []

    def read(step: int) -> None:
        losses = torch.stack(unread).reshape(len(unread), lanes.n).double().cpu()
        bad = ~losses.isfinite()
        for i in bad.any(1).nonzero().flatten().tolist():
            measured.lost(bad[i], task, step - len(unread) + 1 + i)
        for row in losses:  # one by one: the sum must not depend on where a checkpoint cut it
            total.add_(row)
        unread.clear()

    if first == 0 and lanes.learner.begin_task and lanes.stream.boundaries:
        state = lanes.begin_task(state, whole_task(lanes, task, when="begin"))
    for step, batch in batches(lanes, todo, task, first):
        if step < shortest:
            state, logs = lanes.observe(state, batch)
        else:  # the short lanes wait for the long ones
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
            _inside(measured, evaluate(lanes, state)[0], task, done)
        if rhythm.save and done < todo.steps and time.monotonic() - saved > rhythm.save_every:
            if unread:
                read(step)
            measured.loss[:, task] = total  # the sum so far; it becomes a mean below
            rhythm.save(_checkpoint(state, task, done, measured))
            saved = time.monotonic()
    measured.loss[:, task], measured.steps[:, task] = total / length, length
    if lanes.stream.boundaries:
        state = lanes.end_task(state, whole_task(lanes, task))
    measured.note(1 + task, *_finite(evaluate(lanes, state), measured, task, todo.steps))
    if lanes.stream.retention:
        measured.retain(1 + task, evaluate(lanes, state, lanes.stream.train[:, :1 + task])[0])
    if rhythm.save:
        rhythm.save(_checkpoint(state, task + 1, 0, measured))
    return state


def _where(lanes: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(lanes.reshape(lanes.shape + (1,) * (new.dim() - 1)), new, old)


def _inside(measured: Measured, accuracy: Tensor, task: int, step: int) -> None:
    measured.curve = torch.cat([measured.curve, accuracy.unsqueeze(0)])
    measured.curve_step = torch.cat([measured.curve_step, torch.tensor([[task, step]])])


def _checkpoint(state: State, task: int, step: int, measured: Measured) -> dict[str, Any]:
    return {"state": state, "task": task, "step": step, "measured": dict(vars(measured))}
