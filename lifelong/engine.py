"""The only training loop of the project: one lane lifted to many, trained task by task, measured after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.learner import Batch, Learner, State, apart, gradient_step
from lifelong.randomness import generator
from lifelong.stream import Pool, Stream

CHUNK = 512  # steps whose rows and random numbers are made, and moved to the device, at once


class Budget(NamedTuple):
    """How long each task is trained.

    Attributes:
        batch_size: examples a step.
        epochs: passes over the task's data.
        steps: where given, this many steps a task in place of `epochs`.
    """

    batch_size: int = 10
    epochs: int = 1
    steps: int | None = None


@dataclass(frozen=True)
class Lanes:
    """A stack of lanes: for each its seed, and its own values of the hyper-parameters that differ.

    Attributes:
        stream: made for the distinct seeds.
        seeds: the distinct seeds, in the stream's order.
        at: for each lane the position of its seed.
        make: (hyper) -> the learner of one lane.
        hyper: values that differ from lane to lane, each [L]; empty: all lanes have `make({})`.
        device, dtype: where and in what precision.
        stacked: False trains a single lane without the lift.
    """

    stream: Stream
    seeds: Sequence[int]
    at: Sequence[int]
    make: Callable[[Mapping[Any, Any]], Learner]
    hyper: Mapping[Any, Sequence[float]] = field(default_factory=dict)
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    stacked: bool = True

    @property
    def n(self) -> int:
        """Lanes, L."""
        return len(self.at)

    @cached_property
    def pool(self) -> Pool:
        """The examples that all lanes share; of a single unstacked lane its own view of them."""
        pool = self.stream.pool(self.device, self.dtype)
        return pool if self.stacked else pool.lane({k: v[0] for k, v in self.own.items()})

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """What of the stream differs from lane to lane."""
        return self.stream.lanes(self.at, self.device)

    @cached_property
    def numbers(self) -> dict[Any, Tensor]:
        """The hyper-parameters that differ, [L] each, on the device."""
        return {k: torch.tensor(v, dtype=self.dtype, device=self.device) for k, v in self.hyper.items()}

    @cached_property
    def learner(self) -> Learner:
        """The learner of lane 0, for what does not depend on hyper-parameters: draws, data, boundaries."""
        return self.make({k: v[0] for k, v in self.hyper.items()})

    @cached_property
    def stages(self) -> dict[str, Callable[..., Any]]:
        """The stages of a gradient learner for all lanes."""
        names = ("recall", "loss", "transform", "after")
        return {name: self.each(lambda learner, pool, *args, name=name: getattr(learner.stages, name)(pool, *args))
                for name in names}

    @cached_property
    def outer(self) -> Any:
        """The stages whose optimizer sees every lane's own step size."""
        return (self.make(self.numbers) if self.stacked else self.learner).stages

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f(learner, pool, *args)` of one lane as a function of all lanes' stacked `args`."""
        if not self.stacked:
            return lambda *args: f(self.learner, self.pool, *args)

        def one(numbers: dict[Any, Tensor], own: dict[str, Tensor], *args: Any) -> Any:
            learner = self.make(numbers) if numbers else self.learner
            return f(learner, self.pool.lane(own), *args)

        lifted = torch.func.vmap(one)
        return lambda *args: lifted(self.numbers, self.own, *args)

    def init(self) -> State:
        """The state of all lanes before the first task."""
        own = self.stream.lanes(self.at)
        pool = self.stream.pool(dtype=self.dtype)
        states = []
        for lane, at in enumerate(self.at):
            learner = self.make({k: v[lane] for k, v in self.hyper.items()}) if self.hyper else self.learner
            states.append(learner.init(self.seeds[at], pool.lane({k: v[lane] for k, v in own.items()})))
        state = tree(lambda *leaves: torch.stack(leaves) if self.stacked else leaves[0].clone(), *states)
        state = tree(lambda leaf: leaf.to(self.device), state)
        return self._apart(state)

    def observe(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step of all lanes; the state given is used up."""
        if self.learner.stages is None:
            with torch.no_grad():
                new, logs = self._observe(state, batch)
            return new, logs
        return gradient_step(self.outer, self.stages.__getitem__, state, batch)

    @cached_property
    def _observe(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, state, batch: learner.observe(state, pool, batch))

    @cached_property
    def _end_task(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, state, batch: learner.end_task(state, pool, batch))

    def end_task(self, state: State, batch: Batch) -> State:
        """All lanes' state after a task whose rows are in `batch`."""
        with torch.no_grad():
            return self._apart(self._end_task(state, batch))

    def _apart(self, state: State) -> State:
        if "parts" not in state or self.learner.stages is None:
            return state
        return state | {"parts": apart(state["parts"], state["params"])}

    @cached_property
    def answer(self) -> Callable[..., Any]:
        """(state, rows [c], task [c]) -> right, right with the task told [c], whether a score was NaN, of all lanes."""
        return self.each(_answer)


def tree(f: Callable[..., Any], *states: Any) -> Any:
    """`f` over the leaves of nested dicts of the same shape."""
    if isinstance(states[0], dict):
        return {k: tree(f, *(s[k] for s in states)) for k in states[0]}
    return f(*states)


def _answer(learner: Learner, pool: Pool, state: State, rows: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = pool.fetch(rows)
    scores = learner.predict(state, pool, x)
    broken = scores.isnan().any()
    free = told = scores.argmax(-1) == y
    if pool.scenario != "domain":
        told = scores.masked_fill(~pool.classes[task], -torch.inf).argmax(-1) == y
    if pool.scenario == "task":
        free = told
    return free & (rows >= 0), told & (rows >= 0), broken


@torch.no_grad()
def evaluate(lanes: Lanes, state: State) -> tuple[Tensor, Tensor]:
    """Accuracy of all lanes on all tasks now, as asked and with the task told: [L, T] each; NaN where scores are NaN.

    It draws no random number, so it cannot change what is learned.
    """
    test = lanes.stream.test
    n_tasks, m = test.shape[1:]
    task = torch.arange(n_tasks).repeat_interleave(m).to(lanes.device)
    rows = test.flatten(1)[torch.as_tensor(list(lanes.at))].to(lanes.device)
    size = max(256, 8192 // lanes.n)
    free, told, broken = [], [], []
    for a in range(0, rows.shape[1], size):
        part, which = rows[:, a:a + size], task[a:a + size]
        if lanes.stacked:
            out = lanes.answer(state, part, which.expand(lanes.n, -1))
        else:
            out = tuple(t.unsqueeze(0) for t in lanes.answer(state, part[0], which))
        for kept, value in zip((free, told, broken), out, strict=True):
            kept.append(value)
    bad = torch.stack(broken).any(0).unsqueeze(-1)
    count = (rows >= 0).unflatten(1, (n_tasks, m)).sum(-1)

    def share(right: list[Tensor]) -> Tensor:
        hits = torch.cat(right, 1).unflatten(1, (n_tasks, m)).sum(-1)
        return torch.where(bad, torch.nan, hits.double() / count).cpu()

    return share(free), share(told)


# ---- which rows are trained on when


@dataclass(frozen=True)
class Plan:
    """The batches of one task for the distinct seeds.

    Attributes:
        rows: [U, K * B] rows in training order, -1 after a seed's last.
        length: [U] steps of each seed.
        batch_size: B.
    """

    rows: Tensor
    length: Tensor
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of the longest seed, K."""
        return self.rows.shape[1] // self.batch_size


def _shuffled(rows: Tensor, seed: int, name: object, count: int) -> Tensor:
    """The first `count` rows of one shuffled pass after another."""
    passes, epoch = [], 0
    while sum(map(len, passes)) < count:
        passes.append(rows[torch.randperm(len(rows), generator=generator(seed, "order", name, epoch))])
        epoch += 1
    return torch.cat(passes)[:count]


def plan(stream: Stream, seeds: Sequence[int], task: int, data: str, budget: Budget) -> Plan:
    """The batches of a task: shuffled passes, cut into batches; a pass's last batch may be short.

    Args:
        stream: made for `seeds`.
        seeds: they decide the order, each its own.
        task: which.
        data: 'task', 'seen' or 'all': see `Learner.data`.
        budget: passes or steps, and the batch size.
    """
    per_seed = []
    for s, seed in enumerate(seeds):
        tasks = {"task": [task], "seen": list(range(task + 1)), "all": list(range(stream.n_tasks))}[data]
        rows = stream.train[s, tasks].flatten()
        rows = rows[rows >= 0]
        name = "all" if data == "all" else task
        b = budget.batch_size
        if data == "all":
            per_seed.append(_share_of_all(rows, seed, task, stream.n_tasks, budget))
        elif budget.steps is not None:
            per_seed.append(_shuffled(rows, seed, name, budget.steps * b))
        else:
            epochs = [_shuffled(rows, seed, f"{name}/{e}", len(rows)) for e in range(budget.epochs)]
            per_seed.append(torch.cat([_padded(e, b) for e in epochs]))
    longest = max(map(len, per_seed))
    rows = torch.stack([_padded(r, longest) for r in per_seed])
    return Plan(rows, torch.tensor([len(r) // budget.batch_size for r in per_seed]), budget.batch_size)


def _padded(rows: Tensor, multiple: int) -> Tensor:
    return torch.cat([rows, rows.new_full((-len(rows) % multiple,), -1)])


def _share_of_all(rows: Tensor, seed: int, task: int, n_tasks: int, budget: Budget) -> Tensor:
    """Task `task`'s share of one long training on all rows, in as many steps as the tasks have together."""
    b = budget.batch_size
    total = budget.steps * n_tasks if budget.steps is not None else budget.epochs * (-(-len(rows) // b))
    first, last = task * total // n_tasks, (task + 1) * total // n_tasks
    if budget.steps is not None:
        return _shuffled(rows, seed, "all", last * b)[first * b:]
    epochs = [_padded(_shuffled(rows, seed, f"all/{e}", len(rows)), b) for e in range(budget.epochs)]
    return torch.cat(epochs)[first * b:last * b]


def uniforms(seeds: Sequence[int], task: int, draws: Mapping[str, int], start: int) -> dict[str, Tensor]:
    """Uniform numbers [U, CHUNK, draws] for the steps from `start`, a multiple of CHUNK: by seed, task and source."""
    return {name: torch.stack([torch.rand(CHUNK, count, dtype=torch.float64,
                                          generator=generator(seed, "u", name, task, start)) for seed in seeds])
            for name, count in draws.items()}


def batches(lanes: Lanes, plan: Plan, task: int, first: int) -> Any:
    """The batches of a task for all lanes, from step `first` on; rows and numbers go to the device in chunks."""
    at, device, b = torch.as_tensor(list(lanes.at)), lanes.device, plan.batch_size
    draws = lanes.learner.draws(b)
    number = torch.tensor(task if lanes.stream.boundaries else 0, device=device)
    number = number.expand(lanes.n) if lanes.stacked else number
    for start in range(first - first % CHUNK, plan.steps, CHUNK):
        rows = plan.rows[:, start * b:(start + CHUNK) * b].unflatten(1, (-1, b))[at].to(device)
        weight = (rows >= 0).to(lanes.dtype)
        weight /= weight.sum(-1, keepdim=True).clamp(min=1)
        u = {k: v[at].to(device) for k, v in uniforms(lanes.seeds, task, draws, start).items()}
        if lanes.stacked:
            rows, weight, u = rows.transpose(0, 1), weight.transpose(0, 1), {k: v.transpose(0, 1) for k, v in u.items()}
        else:
            rows, weight, u = rows[0], weight[0], {k: v[0] for k, v in u.items()}
        for k in range(max(first - start, 0), min(CHUNK, plan.steps - start)):
            yield start + k, Batch(rows[k], weight[k], {name: v[k] for name, v in u.items()}, number)


def whole_task(lanes: Lanes, task: int) -> Batch:
    """All rows of a task for all lanes, with one uniform number a row for every source."""
    rows = lanes.stream.train[:, task]
    rows = rows[:, :int((rows >= 0).sum(-1).max())]
    at = torch.as_tensor(list(lanes.at))
    u = {name: torch.stack([torch.rand(rows.shape[1], dtype=torch.float64, generator=generator(s, "end", name, task))
                            for s in lanes.seeds])[at].to(lanes.device) for name in lanes.learner.draws(1)}
    rows = rows[at].to(lanes.device)
    weight = (rows >= 0).to(lanes.dtype)
    weight /= weight.sum(-1, keepdim=True)
    number = torch.tensor(task, device=lanes.device).expand(lanes.n)
    batch = Batch(rows, weight, u, number)
    return batch if lanes.stacked else Batch(rows[0], weight[0], {k: v[0] for k, v in u.items()}, number[0])
