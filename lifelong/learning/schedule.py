"""The batches of every task: rows and random numbers as functions of the seed and the task alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lifelong.data.stream import Stream
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Batch
from lifelong.randomness import generator

CHUNK = 512  # the rows and random numbers of this many steps are made and moved to the device at once


class Budget(NamedTuple):
    """The length of training on each task.

    Attributes:
        batch_size: examples per step.
        epochs: passes over the task's data.
        steps: steps per task; None uses `epochs` instead.
    """

    batch_size: int = 10
    epochs: int = 1
    steps: int | None = None


@dataclass(frozen=True)
class Plan:
    """The batches of one task for U seeds.

    Attributes:
        rows: [U, K * B] rows in training order, padded with -1.
        length: [U], number of steps of each seed.
        batch_size: B, examples per step.
    """

    rows: Tensor
    length: Tensor
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of steps of the seed with the most, K."""
        return self.rows.shape[1] // self.batch_size


def _shuffled(rows: Tensor, seed: int, name: object, count: int) -> Tensor:
    """`count` rows from consecutive passes over `rows`, each shuffled anew."""
    passes: list[Tensor] = []
    epoch = 0
    while sum(len(p) for p in passes) < count:
        passes.append(rows[torch.randperm(len(rows), generator=generator(seed, "order", name, epoch))])
        epoch += 1
    return torch.cat(passes)[:count]


def plan(stream: Stream, seeds: Sequence[int], task: int, data: str, budget: Budget) -> Plan:
    """The batches of a task: shuffled passes over the training rows, cut into batches.

    The last batch of a pass may be short. If the stream is ordered and the learner learns each task's own rows, they
    keep their order in every pass.

    Args:
        stream: the stream, made for `seeds`.
        seeds: the seeds; each has its own order.
        task: index of the task.
        data: 'task', 'seen' or 'all', as in `Learner.data`.
        budget: batch size, and number of passes or steps.
    """
    per_seed = []
    for s, seed in enumerate(seeds):
        tasks = {"task": [task], "seen": list(range(task + 1)), "all": list(range(stream.n_tasks))}[data]
        rows = stream.train[s, tasks].flatten()
        rows = rows[rows >= 0]
        name = "all" if data == "all" else task
        b = budget.batch_size
        if stream.ordered and data == "task":
            per_seed.append(_in_order(rows, budget))
        elif data == "all":
            per_seed.append(_share_of_all(rows, seed, task, stream.n_tasks, budget))
        elif budget.steps is not None:
            per_seed.append(_shuffled(rows, seed, name, budget.steps * b))
        else:
            epochs = [_shuffled(rows, seed, f"{name}/{e}", len(rows)) for e in range(budget.epochs)]
            per_seed.append(torch.cat([_padded(e, b) for e in epochs]))
    longest = max(map(len, per_seed))
    rows = torch.stack([_padded(r, longest) for r in per_seed])
    return Plan(rows, torch.tensor([len(r) // budget.batch_size for r in per_seed]), budget.batch_size)


def _in_order(rows: Tensor, budget: Budget) -> Tensor:
    b = budget.batch_size
    if budget.steps is None:
        return _padded(rows, b).repeat(budget.epochs)
    return rows.repeat(-(-budget.steps * b // len(rows)))[:budget.steps * b]


def _padded(rows: Tensor, multiple: int) -> Tensor:
    return torch.cat([rows, rows.new_full((-len(rows) % multiple if multiple else 0,), -1)])


def _share_of_all(rows: Tensor, seed: int, task: int, n_tasks: int, budget: Budget) -> Tensor:
    """The rows of task `task` if one training on all rows is divided equally among the tasks."""
    b = budget.batch_size
    total = budget.steps * n_tasks if budget.steps is not None else budget.epochs * (-(-len(rows) // b))
    first, last = task * total // n_tasks, (task + 1) * total // n_tasks
    if budget.steps is not None:
        return _shuffled(rows, seed, "all", last * b)[first * b:]
    epochs = [_padded(_shuffled(rows, seed, f"all/{e}", len(rows)), b) for e in range(budget.epochs)]
    return torch.cat(epochs)[first * b:last * b]


def uniforms(seeds: Sequence[int], task: int, draws: Mapping[str, int], start: int) -> dict[str, Tensor]:
    """Uniform numbers [U, CHUNK, draws] of each part, by its name, for the steps from `start`, a multiple of CHUNK."""
    return {name: torch.stack([torch.rand(CHUNK, count, dtype=torch.float64,
                                          generator=generator(seed, "u", name, task, start)) for seed in seeds])
            for name, count in draws.items()}


def batches(lanes: Lanes, plan: Plan, task: int, first: int) -> Iterator[tuple[int, Batch]]:
    """The steps of a task for all lanes, from step `first` on, each with its batch.

    Rows and random numbers are moved to the device in chunks of CHUNK steps.
    """
    lane_seed, device, b = torch.as_tensor(list(lanes.at)), lanes.device, plan.batch_size
    draws = lanes.draws(b)
    number = torch.tensor(task if lanes.stream.boundaries else 0, device=device)
    number = number.expand(lanes.n) if lanes.stacked else number
    for start in range(first - first % CHUNK, plan.steps, CHUNK):
        host_rows = plan.rows[:, start * b:(start + CHUNK) * b].unflatten(1, (-1, b))[lane_seed]
        rows = host_rows.to(device)
        weight = (rows >= 0).to(lanes.dtype)
        weight /= weight.sum(-1, keepdim=True).clamp(min=1)
        u = {k: v[lane_seed].to(device) for k, v in uniforms(lanes.seeds, task, draws, start).items()}
        if lanes.stacked:
            rows, weight, u = rows.transpose(0, 1), weight.transpose(0, 1), {k: v.transpose(0, 1) for k, v in u.items()}
        else:
            rows, weight, u = rows[0], weight[0], {k: v[0] for k, v in u.items()}
        # Unbound once: indexing at every step takes longer.
        step_rows, step_weight, step_u = rows.unbind(), weight.unbind(), {name: v.unbind() for name, v in u.items()}
        steps = range(max(first - start, 0), min(CHUNK, plan.steps - start))
        if lanes.ahead and steps:
            examples = host_rows.transpose(0, 1) if lanes.stacked else host_rows[0]
            examples = examples.clamp(min=0) % len(lanes.stream.y)
            lanes.ahead.expect(step_rows[steps.start:steps.stop], examples[steps.start:steps.stop].unbind())
        for k in steps:
            yield start + k, Batch(step_rows[k], step_weight[k], {name: v[k] for name, v in step_u.items()}, number)


def whole_task(lanes: Lanes, task: int, limit: int | None = None, when: str = "end") -> Batch:
    """One batch per lane with all rows of a task, or its first `limit`, and one uniform number per row and part.

    The numbers before a task (`when='begin'`) differ from those after it (`when='end'`).
    """
    rows = lanes.stream.train[:, task]
    rows = rows[:, :int((rows >= 0).sum(-1).max())][:, :limit]
    at = torch.as_tensor(list(lanes.at))
    u = {name: torch.stack([torch.rand(rows.shape[1], dtype=torch.float64, generator=generator(s, when, name, task))
                            for s in lanes.seeds])[at].to(lanes.device) for name in lanes.learner.draws(1)}
    rows = rows[at].to(lanes.device)
    weight = (rows >= 0).to(lanes.dtype)
    weight /= weight.sum(-1, keepdim=True)
    number = torch.tensor(task, device=lanes.device).expand(lanes.n)
    batch = Batch(rows, weight, u, number)
    return batch if lanes.stacked else Batch(rows[0], weight[0], {k: v[0] for k, v in u.items()}, number[0])
