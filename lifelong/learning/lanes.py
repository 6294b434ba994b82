"""Stacks of lanes: runs a learner that is written for one lane on many lanes at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lifelong.data.augment import NONE
from lifelong.data.pool import Pool
from lifelong.data.prefetch import Ahead, gathered
from lifelong.data.stream import Stream
from lifelong.learning.composition import GradientLearner
from lifelong.learning.learner import AUGMENT, NETWORK, Batch, Learner, State
from lifelong.learning.step import Step, unaliased
from lifelong.machine import free
from lifelong.networks.net import Back, Net, Params, looped, looped_train
from lifelong.vmap import lift, tree

CPU = torch.device("cpu")
EXAMINED = 2**28  # maximum bytes of transformed test examples that are cached
# False runs every lane's network through the lift and autograd: slower, and the reference in tests of the fast paths.
FAST = not os.environ.get("LIFELONG_PLAIN")


@dataclass(frozen=True)
class Lanes:
    """A stack of lanes, each with its seed and its values of the hyper-parameters that differ between lanes.

    Attributes:
        stream: the stream, made for the distinct seeds.
        seeds: the distinct seeds, in the stream's order.
        at: for each lane the index of its seed.
        make: (hyper) -> the learner of one lane.
        hyper: values that differ between lanes, [L] each; if empty, all lanes have `make({})`.
        device, dtype: device and precision of training.
        stacked: False trains a single lane without the lift.
        host: whether examples stay in the host's memory because the device has no room.
    """

    stream: Stream
    seeds: Sequence[int]
    at: Sequence[int]
    make: Callable[[Mapping[Any, Any]], Learner]
    hyper: Mapping[Any, Sequence[float]] = field(default_factory=dict)
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    stacked: bool = True
    host: bool = False

    @property
    def n(self) -> int:
        """Number of lanes, L."""
        return len(self.at)

    @cached_property
    def pool(self) -> Pool:
        """The examples that all lanes share; for a single unstacked lane, its own view of them."""
        pool = self.stream.pool(self.device, self.dtype, self.host)
        return pool if self.stacked else pool.lane({k: v[0] for k, v in self.own.items()})

    @cached_property
    def own(self) -> dict[str, Tensor]:
        """The tensors of the stream that differ between lanes."""
        return self.stream.lanes(self.at, self.device)

    @cached_property
    def numbers(self) -> dict[Any, Tensor]:
        """The hyper-parameters that differ between lanes, [L] each, on the device."""
        return {k: torch.tensor(v, dtype=self.dtype, device=self.device) for k, v in self.hyper.items()}

    @cached_property
    def learner(self) -> Learner:
        """The learner of lane 0, for properties that do not depend on hyper-parameters: draws, data, boundaries."""
        return self.make({k: v[0] for k, v in self.hyper.items()})

    @property
    def net(self) -> Net | None:
        """The network of a gradient learner; None for other learners."""
        return self.learner.net if isinstance(self.learner, GradientLearner) else None

    def each(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """`f(learner, pool, *args)` of one lane as a function of the stacked `args` of all lanes."""
        if not self.stacked:
            return lambda *args: f(self.learner, self.pool, *args)

        def one(numbers: dict[Any, Tensor], own: dict[str, Tensor], *args: Any) -> Any:
            learner = self.make(numbers) if numbers else self.learner
            return f(learner, self.pool.lane(own), *args)

        return lambda *args: lift(one, self.n, self.numbers, self.own, *args)

    @cached_property
    def _everyone(self) -> tuple[Pool, Tensor]:
        """One pool with the variants of all lanes, and the offset [L, 1] that a lane's rows have in it."""
        tables = {k: v.flatten(0, 1) for k, v in self.own.items() if k != "classes"}
        variants = next((v.shape[1] for k, v in self.own.items() if k != "classes"), 0)
        lane = torch.arange(self.n, device=self.device) * variants * len(self.pool.y)
        return self.pool.lane(tables), lane.unsqueeze(-1)

    @cached_property
    def ahead(self) -> Ahead | None:
        """Gathers batches in advance if examples stay in the host's memory; otherwise None."""
        return Ahead(self.stream.x, self.device) if self.host else None

    def draws(self, batch_size: int) -> dict[str, int]:
        """Number of uniform numbers that a step needs, by source."""
        draws = self.learner.draws(batch_size)
        if self.net and self.net.draws:
            draws = draws | {NETWORK: self.net.draws}
        return draws if self.stream.augment == NONE else draws | {AUGMENT: 1}

    def fetch(self, rows: Tensor, more: Sequence[Tensor] = (), u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Examples [L, B, *shape] and their units [L, B] for rows [L, B], in one gather; without L if not stacked.

        Args:
            rows: rows of a batch.
            more: further rows [L, R] each; their examples follow those of `rows`.
            u: [L, 1], random numbers for augmentation; None does not augment.
        """
        every = torch.cat([rows, *more], -1) if more else rows
        if not self.host and not self.stacked:
            return self.pool.fetch(every, u)
        ready = self.ahead.take(rows) if self.ahead else None
        if ready is not None and more:
            others = every[..., rows.shape[-1]:]
            rest = gathered(self.pool.x, (others.clamp(min=0) % len(self.pool.y)).flatten())
            ready = torch.cat([ready, rest.view(*others.shape, *rest.shape[1:])], rows.dim() - 1)
        pool, at = self.pool, every
        if self.stacked:
            pool, offset = self._everyone
            at = (every.clamp(min=0) + offset).flatten()
        x, y = pool.stored(at, None if ready is None else ready.flatten(0, every.dim() - 1))
        x = pool.real(pool.augmented(x.view(*every.shape, *pool.shape), u))
        return x, y.view(*every.shape, *y.shape[1:])

    @cached_property
    def _examined(self) -> tuple[Tensor, Tensor] | None:
        """The cached test examples of every seed here, [U, T * m, ...], and their units; None if they are not cached.

        They are cached if the stream warps pixels, which would take longer than the network, and there is room.
        """
        test = self.stream.test.flatten(1)
        if not self.stacked or self.stream.warp is None:
            n, pool, offset = 1, self.pool, torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        else:
            firsts = [list(self.at).index(seed) for seed in sorted(set(self.at))]
            n, (pool, every) = len(firsts), self._everyone
            offset = every[firsts]
        size = n * test.shape[1] * self.stream.x[:1].nbytes
        if self.stream.warp is None or size > min(EXAMINED, 0.1 * free(self.device)):
            return None
        rows = (test[sorted(set(self.at))].to(self.device).clamp(min=0) + offset).flatten()
        x, y = pool.stored(rows)
        return x.view(n, test.shape[1], -1), y.view(n, test.shape[1], *y.shape[1:])

    def examined(self, rows: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Test examples a to b, counted over all tasks, for all lanes, as `fetch`; `rows` [L, b - a] are their rows."""
        if self._examined is None:
            return self.fetch(rows if self.stacked else rows[0])
        x, y = (t[:, a:b] for t in self._examined)
        if self.n > 1 and list(self.at) != sorted(set(self.at)):
            order = {seed: i for i, seed in enumerate(sorted(set(self.at)))}
            at = torch.tensor([order[seed] for seed in self.at], device=self.device)
            x, y = x.index_select(0, at), y.index_select(0, at)
        shape = (self.n,) if self.stacked else ()
        return self.pool.real(x.reshape(*shape, b - a, *self.stream.shape)), y.reshape(*shape, b - a, *y.shape[2:])

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

    def resume(self, state: State) -> State:
        """A saved state, moved to the device."""
        resumed: State = tree(lambda leaf: leaf.to(self.device), state)
        return resumed

    def observe(self, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step of all lanes; the given state must not be used afterwards."""
        if isinstance(self.learner, GradientLearner):
            return self.step(state, batch)
        with torch.no_grad():
            new, logs = self._observe(state, batch)
        return new, logs

    @cached_property
    def step(self) -> Step:
        """The step of a gradient learner; its optimizer gets the hyper-parameters of all lanes."""
        learner = self.make(self.numbers) if self.stacked and self.numbers else self.learner
        train = looped_train(self.net) if self.net and self.net.train and self.forward is not None else None
        return Step(learner, self.each, self.fetch, self.rivals, self.forward, train, self.stream.problem)

    @cached_property
    def forward(self) -> Callable[[Params, Tensor], tuple[Tensor, Back]] | None:
        """The network of all lanes without the lift, in the fastest form on this device; None if it must be lifted."""
        if self.net is None or self.learner.told or not FAST:
            return None
        if self.net.vjp is None and self.stacked and self.device.type == "cpu":
            return looped(self.net)
        return self.net.vjp

    @cached_property
    def predict(self) -> Callable[[State, Tensor, Tensor], Tensor]:
        """(state, x [L, n, *shape], task 0-d) -> scores [L, n, C] of all lanes; without L if not stacked."""
        forward, net = self.forward, self.net
        if forward and net and self.answers_by_network:
            if net.vjp is None:  # lane by lane, and without storing anything for derivatives
                return lambda state, x, task: torch.stack(
                    [net.apply({k: p[i] for k, p in state["params"].items()}, x[i]) for i in range(len(x))])
            return lambda state, x, task: forward(state["params"], x)[0]

        def one(learner: Learner, pool: Pool, state: State, x: Tensor, task: Tensor) -> Tensor:
            return learner.predict(state, pool, x, task) if learner.told else learner.predict(state, pool, x)

        every = self.each(one)
        return lambda state, x, task: every(state, x, task.expand(self.n) if self.stacked else task)

    @cached_property
    def answers_by_network(self) -> bool:
        """Whether scores are those of a network, and not of a learner or a part that predicts in its own way."""
        learner = self.learner
        return isinstance(learner, GradientLearner) and not any(part.predict for part in learner.parts.values())

    def finite(self, state: State) -> Tensor:
        """The lanes [L] bool, on the processor, whose trained parameters are all finite."""
        params = [*state["params"].values()] if self.net else []
        every = [p.isfinite().reshape(self.n, -1).all(1) for p in params]
        return torch.stack(every).all(0).cpu() if every else torch.ones(self.n, dtype=torch.bool)

    def rivals(self, y: Tensor) -> Tensor | None:
        """`Pool.rivals` for all lanes."""
        if self.stream.scenario != "task":
            return None
        rivals: Tensor = self._rivals(y)
        return rivals

    @cached_property
    def _rivals(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, y: pool.rivals(y))

    @cached_property
    def _observe(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, state, batch: learner.observe(state, pool, batch))

    @cached_property
    def _end_task(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, state, batch: learner.end_task(state, pool, batch))

    @cached_property
    def _begin_task(self) -> Callable[..., Any]:
        return self.each(lambda learner, pool, state, batch: learner.begin_task(state, pool, batch))

    @torch.no_grad()
    def begin_task(self, state: State, batch: Batch) -> State:
        """The state of all lanes before a task whose rows are in `batch`."""
        return self._apart(self._begin_task(state, batch))

    @torch.no_grad()
    def end_task(self, state: State, batch: Batch) -> State:
        """The state of all lanes after a task whose rows are in `batch`."""
        return self._apart(self._end_task(state, batch))

    def _apart(self, state: State) -> State:
        if self.net is None:
            return state
        return state | {"parts": unaliased(state["parts"], state["params"])}
