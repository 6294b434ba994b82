"""A sum of parts as a learner, and its step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import AUGMENT, NETWORK, Batch, Initialization, Learner, State, apart, real
from lifelong.learning.losses import Slice as Slice
from lifelong.learning.losses import cross_entropy_vjp
from lifelong.learning.optim import Optimizer
from lifelong.learning.parts import Part, View, rehearsal
from lifelong.networks.net import Back, Net
from lifelong.networks.net import Params as Params
from lifelong.randomness import generator

_NONE: Any = None
Recalled = dict[str, tuple[Tensor, Tensor]]  # by part: the rows, and their weights in a mean


@dataclass(frozen=True)
class Stages:
    """A sum of parts; its step is cut where the engine lifts it. Every method is for one lane.

    Attributes:
        net: the network.
        parts: by name, in the order of the sum.
        start: where learning starts; what it freezes does not move.
        optimizer: moves the trained parameters, all lanes at once.
    """

    net: Net
    parts: dict[str, Part]
    start: Initialization
    optimizer: Optimizer

    @cached_property
    def uses(self) -> frozenset[str]:
        """Which of the stages do anything; 'criterion' where the batch's cross-entropy is replaced."""
        hooks = {"recall": ("recall",), "loss": ("loss", "criterion"), "criterion": ("criterion",),
                 "slope": ("slope",), "transform": ("pull", "grads"), "after": ("step",)}
        return frozenset(stage for stage, names in hooks.items()
                         if any(getattr(part, name) not in (None, rehearsal)
                                for part in self.parts.values() for name in names))

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Parameters that no gradient moves: statistics of batch normalisation."""
        return frozenset(self.net.still)

    @property
    def told(self) -> bool:
        """Whether answers depend on the task."""
        return any(part.weights for part in self.parts.values())

    def _applied(self, params: Params, state: State, pool: Pool, task: Tensor) -> Params:
        for name, part in self.parts.items():
            if part.weights:
                view = View(state["parts"].get(name, {}), state["params"], self.net, pool, task=task)
                params = part.weights(view, params)
        return params

    def predict(self, state: State, pool: Pool, x: Tensor, task: Tensor = _NONE) -> Tensor:
        """Scores [n, C]; `task` is given where answers depend on it."""
        for name, part in self.parts.items():
            if part.predict:
                net = self._worn(state, pool, task) if self.told else self.net
                return part.predict(View(state["parts"].get(name, {}), state["params"], net, pool, task=task), x)
        return self.net.apply(self._applied(state["params"], state, pool, task), x)

    def init(self, seed: int, pool: Pool) -> State:
        """Parameters, the optimizer's state, and every part's own."""
        params = {k: p.to(pool.dtype) for k, p in self.start.params(self.net, seed).items()}
        trained = {k: p for k, p in params.items() if k not in self.fixed and not self.start.frozen(k)}
        own = {}
        for name, part in self.parts.items():
            if part.init:
                view = View({}, params, self.net, pool, generator=generator(seed, "init", name))
                own[name] = part.init(view)
        return {"params": params, "optimizer": self.optimizer.init(trained), "parts": own}

    def _view(self, name: str, state: State, pool: Pool, given: Batch, **fields: Any) -> View:
        net = self._worn(state, pool, given.task) if self.told else self.net
        if net.draws and NETWORK in given.u:
            train, u = net.train, given.u[NETWORK]
            assert train is not None
            net = net._replace(train=lambda params, x, real, _: train(params, x, real, u))
        return View(state["parts"].get(name, {}), state["params"], net, pool, given.u.get(name, _NONE), given.task,
                    **fields)

    def _worn(self, state: State, pool: Pool, task: Tensor) -> Net:
        """The network with the weights that the parts give task `task`."""
        return self.net.passes(lambda f: lambda params, *given: f(self._applied(params, state, pool, task), *given))

    def _bare(self, batch: Batch) -> Slice:
        return Slice(batch.rows, batch.weight, _NONE, _NONE, _NONE)

    def recall(self, pool: Pool, state: State, batch: Batch) -> dict[str, Tensor]:
        """The rows that each part rehearses now."""
        return {name: part.recall(self._view(name, state, pool, batch, batch=self._bare(batch)))
                for name, part in self.parts.items() if part.recall}

    def apply(self, pool: Pool, trained: Params, state: State, batch: Batch, x: Tensor) -> Tensor:
        """Scores of everything that is looked at in this step."""
        return self.net.apply(self._applied(state["params"] | trained, state, pool, batch.task), x)

    def train(self, pool: Pool, trained: Params, state: State, batch: Batch, real: Tensor,
              x: Tensor) -> tuple[Tensor, Params]:
        """The same where the network has batch normalisation, whose statistics are of the `real` of them [n] bool; and
        the running statistics after it."""
        assert self.net.train is not None
        return self.net.train(self._applied(state["params"] | trained, state, pool, batch.task), x, real,
                              batch.u.get(NETWORK))

    def loss(self, pool: Pool, trained: Params, state: State, batch: Batch, recalled: Recalled, x: Tensor, y: Tensor,
             scores: Tensor) -> Tensor:
        """What the parts add to the cross-entropy of the batch and of rehearsals, or put in its place; each gets its
        slice of the scores."""
        state = state | {"params": state["params"] | trained}
        own, others = self._slices(pool, batch, recalled, x, y, scores)
        total = scores.new_zeros(())
        for name, part in self.parts.items():
            for hook in (part.criterion, part.loss):
                if hook not in (None, rehearsal):
                    one = hook(self._view(name, state, pool, batch, batch=own, recalled=others.get(name)))
                    if one is None or (isinstance(one, Tensor) and one.dim()):
                        said = "nothing" if one is None else f"a tensor {list(one.shape)}"
                        raise ValueError(f"{name}: a loss must be one number, and its hook returned {said}")
                    total = total + one
        return total

    def slope(self, pool: Pool, state: State, batch: Batch, recalled: Recalled, x: Tensor, y: Tensor,
              scores: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the parts add to the loss that they differentiate themselves, and the gradients, by part."""
        own, others = self._slices(pool, batch, recalled, x, y, scores)
        every = {name: part.slope(self._view(name, state, pool, batch, batch=own, recalled=others[name]))
                 for name, part in self.parts.items() if part.slope}
        total, *more = (loss for loss, _ in every.values())
        for loss in more:
            total = total + loss
        return total, {name: grad for name, (_, grad) in every.items()}

    def _slices(self, pool: Pool, batch: Batch, recalled: Recalled, x: Tensor, y: Tensor,
                scores: Tensor) -> tuple[Slice, dict[str, Slice]]:
        """The batch, and what each part recalled."""
        given = [(batch.rows, batch.weight), *recalled.values()]
        sizes = [len(rows) for rows, _ in given]
        cut = [t.split(sizes) if t is not None and recalled else [t] * len(sizes)
               for t in (x, y, scores, pool.rivals(y))]
        own, *others = [Slice(*rows, *fields) for rows, *fields in zip(given, *cut, strict=True)]
        return own, dict(zip(recalled, others, strict=True))

    def transform(self, pool: Pool, state: State, batch: Batch, grads: Params) -> Params:
        """The gradient with every pull added, then transformed."""
        for name, part in self.parts.items():
            if part.pull:
                more = part.pull(self._view(name, state, pool, batch, batch=self._bare(batch)))
                grads = {k: g + more[k] if k in more else g for k, g in grads.items()}
        for name, part in self.parts.items():
            if part.grads:
                grads = part.grads(self._view(name, state, pool, batch, batch=self._bare(batch)), grads)
        return grads

    def after(self, pool: Pool, state: State, batch: Batch, grads: Params, seen: dict[str, Tensor]) -> State:
        """The parts' states after the update; `seen` is the batch as `loss` saw it."""
        mine = Slice(batch.rows, batch.weight, seen["x"], seen["y"], seen["scores"], pool.rivals(seen["y"]))
        return state["parts"] | {name: part.step(self._view(name, state, pool, batch, batch=mine, grads=grads))
                                 for name, part in self.parts.items() if part.step}

    def end_task(self, state: State, pool: Pool, batch: Batch) -> State:
        """The state after a task whose rows are in `batch`."""
        own = {name: part.task(self._view(name, state, pool, batch, batch=self._bare(batch)))
               for name, part in self.parts.items() if part.task}
        return state | {"parts": state["parts"] | own}

    def draws(self, batch_size: int) -> dict[str, int]:
        """How many uniform numbers a step needs, by part."""
        counts = {name: part.draws(batch_size) if callable(part.draws) else part.draws
                  for name, part in self.parts.items()}
        counts = {name: count for name, count in counts.items() if count or self.parts[name].task}
        if not self.net.draws:
            return counts
        if NETWORK in counts:
            raise ValueError(f"a part cannot be called {NETWORK}, for these random numbers are the network's: give it "
                             "another name")
        return counts | {NETWORK: self.net.draws}


def gradient_learner(net: Net, optimizer: Optimizer, parts: dict[str, Part],
                     start: Initialization | None = None) -> Learner:
    """The learner that minimises its batch's cross-entropy plus the losses of `parts`.

    Each part sees its own state, its own rows and its own random numbers, so any sum of parts is a learner; the order
    matters only for gradient transforms.

    Args:
        net: the network.
        optimizer: moves its parameters.
        parts: by name; the name is also the source of the part's random numbers.
        start: where learning starts; None: the network's own random initialization.

    Raises:
        ValueError: where two parts disagree about the rows that a task trains on.
    """
    start = start or Initialization(lambda net, seed: net.init(generator(seed, "init")))
    net = start.net or net
    data = {part.data for part in parts.values()} - {"task"}
    if len(data) > 1:
        raise ValueError("a sum can have one bound: joint and cumulative each decide which rows a task trains on")
    for hook, what in (("criterion", "the loss of the batch"), ("predict", "the answer")):
        if len(both := [name for name, part in parts.items() if getattr(part, hook)]) > 1:
            raise ValueError(f"{' and '.join(both)} cannot be summed: each puts its own in place of {what}")
    for name, part in parts.items():
        if part.slope and not part.recall:
            raise ValueError(f"{name} has a slope, which is by the scores of what it recalls, but recalls nothing")
    for one, part in parts.items():
        if part.weights and net.still:
            raise ValueError(f"{one} gives every task weights of its own, and batch normalisation has statistics that "
                             "tasks share: use a network with norm='group'")
        for other, mate in parts.items():
            if not part.weights or one == other:
                continue
            if mate.weights:
                raise ValueError(f"{one} and {other} cannot be summed: each gives every task weights of its own")
            if mate.recall or mate.grads or mate.data != "task":
                raise ValueError(f"{one} and {other} cannot be summed: {one} gives every task weights of its own, and "
                                 f"{other} looks at other tasks' examples with those of this one")
    stages = Stages(net, parts, start, optimizer)

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        owned = state | {k: {n: v.clone() for n, v in state[k].items()} for k in ("params", "optimizer")}
        way = Way(lambda stage: partial(getattr(stages, stage), pool),
                  lambda rows, more, u: pool.fetch(torch.cat([rows, *more], -1), u), pool.rivals)
        return gradient_step(stages, way, owned, batch)

    return Learner(stages.init, observe, stages.predict, stages.end_task, stages.draws, next(iter(data), "task"),
                   any(p.boundaries for p in parts.values()), stages.told, stages)


class Way(NamedTuple):
    """How the step of a sum of parts is carried out for all lanes.

    Attributes:
        each: (stage name) -> that stage for all lanes.
        fetch: (rows of the batch, rows that each part recalled, what they are augmented by) -> x, y of all of them, for
            all lanes, in one gather.
        rivals: (y) -> the units that compete, or None: see `Pool.rivals`.
        forward: `Net.vjp` for all lanes; None: the network too goes through `each`, and autograd.
        train: the same of `Net.train`, where the network has it.
    """

    each: Callable[[str], Callable[..., Any]]
    fetch: Callable[[Tensor, list[Tensor], Tensor | None], tuple[Tensor, Tensor]]
    rivals: Callable[[Tensor], Tensor | None]
    forward: Callable[[Params, Tensor], tuple[Tensor, Back]] | None = None
    train: Callable[[Params, Tensor, Tensor, Tensor | None], tuple[Tensor, Back, Params]] | None = None


@torch.no_grad()
def gradient_step(stages: Stages, way: Way, state: State, batch: Batch) -> tuple[State, dict[str, Tensor]]:
    """One step of a gradient learner; writes into its parameters and its optimizer's state.

    Differentiation and the update run outside the lift, on stacked leaves: a lane's loss depends on its own
    parameters alone, so the gradient of the summed losses is every lane's own gradient.

    Args:
        stages: the step of one lane.
        way: for all lanes.
        state: owned by the caller.
        batch: of all lanes.
    """
    trained = {k: p for k, p in state["params"].items() if not stages.start.frozen(k)}
    if stages.net.still:
        trained = {k: p for k, p in trained.items() if k not in stages.fixed}
    # Every tensor that goes through the lift costs about a microsecond, so none goes in vain.
    visible = {"params": state["params"], "parts": state["parts"]}
    rows = way.each("recall")(visible, batch) if "recall" in stages.uses else {}
    x, y = way.fetch(batch.rows, list(rows.values()), batch.u.get(AUGMENT))
    recalled = {name: (r, real(r, batch.weight.dtype)) for name, r in rows.items()}
    losses, scores, grads, moved = _differentiated(stages, way, state, trained, batch, recalled, x, y)
    if "transform" in stages.uses:
        grads = way.each("transform")(visible, batch, grads)
    stages.optimizer.update(trained, grads, state["optimizer"])
    for k, value in moved.items():
        if not stages.start.frozen(k):
            state["params"][k].copy_(value)
    if "after" in stages.uses:
        seen = {k: _own(batch, v) for k, v in (("x", x), ("y", y), ("scores", scores))}
        state = state | {"parts": apart(way.each("after")(visible, batch, grads, seen), state["params"])}
    return state, {"loss": losses}


def _own(batch: Batch, value: Tensor) -> Tensor:
    """Of `value`, which has the batch and then what was recalled, the batch."""
    return value.narrow(batch.rows.dim() - 1, 0, batch.rows.shape[-1])


def _differentiated(stages: Stages, way: Way, state: State, trained: Params, batch: Batch, recalled: Recalled,
                    x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Params, Params]:
    """Losses, the scores of the batch and of what was recalled, the gradients of the trained parameters, and where the
    statistics of batch normalisation go.

    Where the network has a derivative by hand, autograd sees only what the parts do with the scores, and with the
    parameters directly.
    """
    leaves = trained
    lifts = (way.train if stages.net.train else way.forward) is None
    if lifts or "loss" in stages.uses:
        leaves = {k: p.detach().requires_grad_() for k, p in trained.items()}
    still = {"params": {k: p for k, p in state["params"].items() if k not in trained}, "parts": state["parts"]}
    answers, back, moved = _answers(stages, way, state["params"], leaves, still, batch, recalled, x)
    scores = answers.detach()
    weight = batch.weight if "criterion" not in stages.uses else torch.zeros_like(batch.weight)
    if recalled:
        counts = (w if stages.parts[name].loss is rehearsal else torch.zeros_like(w)
                  for name, (_, w) in recalled.items())
        weight = torch.cat([weight, *counts], -1)
    losses, towards = cross_entropy_vjp(scores, y, weight, way.rivals(y))
    if "slope" in stages.uses:
        more, slopes = way.each("slope")(still | {"params": state["params"]}, batch, recalled, x, y, scores)
        losses, first = losses + more, batch.rows.shape[-1]
        for name, (rows, _) in recalled.items():
            if name in slopes:
                towards.narrow(-2, first, rows.shape[-1]).add_(slopes[name])
            first += rows.shape[-1]
    direct: Params = {}
    if "loss" in stages.uses:
        with torch.enable_grad():
            seen = scores.detach().requires_grad_()
            more = way.each("loss")(leaves, still, batch, recalled, x, y, seen)
            if more.requires_grad:
                grad, *others = torch.autograd.grad(more.sum(), [seen, *leaves.values()], allow_unused=True)
                direct = {k: g for k, g in zip(leaves, others, strict=True) if g is not None}
                towards = towards if grad is None else towards + grad
        losses = losses + more.detach()
    if back is not None:
        grads = back(towards, trained.keys())
    else:
        grads = dict(zip(leaves, torch.autograd.grad(answers, list(leaves.values()), towards, materialize_grads=True),
                         strict=True))
    return losses, scores, {k: grads[k] + direct[k] if k in direct else grads[k] for k in trained}, moved


def _answers(stages: Stages, way: Way, params: Params, leaves: Params, still: State, batch: Batch,
             recalled: Recalled, x: Tensor) -> tuple[Tensor, Back | None, Params]:
    """The scores, their derivative by hand where there is one, and where the statistics of batch normalisation go."""
    if stages.net.train:
        real = torch.cat([batch.rows, *(rows for rows, _ in recalled.values())], -1) >= 0
        if way.train:
            return way.train(params, x, real, batch.u.get(NETWORK))
        with torch.enable_grad():
            answers, moved = way.each("train")(leaves, still, batch, real, x)
        return answers, None, moved
    if way.forward:
        return *way.forward(params, x), {}
    with torch.enable_grad():
        return way.each("apply")(leaves, still, batch, x), None, {}
