"""A sum of parts as one learner: the functions of one lane that its step is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import NETWORK, Batch, Initialization, Learner, State
from lifelong.learning.losses import Loss, Slice
from lifelong.learning.optim import Optimizer
from lifelong.learning.parts import Numbers, Part, View, counted, positions
from lifelong.learning.step import Step
from lifelong.learning.sums import check_sum
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.vmap import resolved

_NONE: Any = None
OWN = "/"  # parts' own trained parameters are called `part/name` in the state


class GradientLearner(Learner):
    """The learner that minimises its batch's cross-entropy plus the losses of its parts.

    Its state has `params` (the network's parameters, and the parts' own as `part/name`), `optimizer` and `parts` (by
    name). `observe` is the step of one lane; a stack of lanes is stepped by a `Step` of its own, which lifts the
    methods `recall`, `losses`, `transform` and `after` and does the rest on the stack.

    Attributes:
        net: the network.
        parts: by name, in the order of the sum.
        start: where learning begins; what it freezes does not move.
        optimizer: moves the trained parameters, those of all lanes at once.
    """

    net: Net
    parts: dict[str, Part]
    start: Initialization
    optimizer: Optimizer

    def __init__(self, net: Net, optimizer: Optimizer, parts: dict[str, Part], start: Initialization) -> None:
        data = {part.data for part in parts.values()} - {"task"}
        told = any(part.weights for part in parts.values())
        facts = {"net": net, "parts": parts, "start": start, "optimizer": optimizer, "told": told,
                 "data": next(iter(data), "task"), "boundaries": any(part.boundaries for part in parts.values()),
                 "classes": any(part.classes for part in parts.values()),
                 "begin_task": self._begin_task if any(part.begin for part in parts.values()) else None}
        for name, value in facts.items():
            object.__setattr__(self, name, value)  # a Learner is frozen

    # ---- what every learner has

    def init(self, seed: int, pool: Pool) -> State:
        """The parameters, the optimizer's state, and the state of every part."""
        params = {k: p.to(pool.dtype) for k, p in self.start.params(self.net, seed).items()}
        view = partial(View, {}, params, self.net, pool)
        more = {f"{name}{OWN}{k}": p.to(pool.dtype) for name, part in self.parts.items() if part.params
                for k, p in part.params(view(generator=generator(seed, "params", name))).items()}
        own = {name: part.init(view(generator=generator(seed, "init", name)))
               for name, part in self.parts.items() if part.init}
        return {"params": params | more, "optimizer": self.optimizer.init(self.trained(params | more)), "parts": own}

    def observe(self, state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        """One step of one lane; the state given is not written into."""
        owned = state | {k: {n: v.clone() for n, v in state[k].items()} for k in ("params", "optimizer")}

        def fetch(rows: Tensor, more: list[Tensor], u: Tensor | None) -> tuple[Tensor, Tensor]:
            return pool.fetch(torch.cat([rows, *more], -1), u)

        return Step(self, lambda f: partial(f, self, pool), fetch, pool.rivals,
                    problem=pool.problem)(owned, batch)

    def predict(self, state: State, pool: Pool, x: Tensor, task: Tensor = _NONE) -> Tensor:
        """Scores [n, C]; `task` is given where answers depend on it."""
        params, parts = state["params"], state["parts"]
        for name, part in self.parts.items():
            if part.predict:
                return part.predict(self._view(name, pool, params, parts, task=task), x)
        return self.applied(pool, params, parts, task, x)

    def _begin_task(self, state: State, pool: Pool, batch: Batch) -> State:
        return self._at_task("begin", state, pool, batch)

    def end_task(self, state: State, pool: Pool, batch: Batch) -> State:
        """The state after a task whose rows are in `batch`."""
        return self._at_task("task", state, pool, batch)

    def _at_task(self, hook: str, state: State, pool: Pool, batch: Batch) -> State:
        params = state["params"]
        views = {name: self._view(name, pool, params, state["parts"], batch, batch=_bare(batch))
                 for name, part in self.parts.items() if getattr(part, hook)}
        found = {name: getattr(self.parts[name], hook)(view._replace(u=batch.u.get(name, _NONE)))
                 for name, view in views.items()}
        states, moved = _renewed(hook, state["parts"], found)
        return state | {"params": params | moved, "parts": state["parts"] | states}

    def draws(self, batch_size: int) -> dict[str, int]:
        """How many uniform numbers a step needs, by part."""
        found = {name: counted(part.draws, batch_size) for name, part in self.parts.items()}
        counts = {name: sum(count.values()) if isinstance(count, dict) else count for name, count in found.items()}
        return {name: count for name, count in counts.items()
                if count or self.parts[name].task or self.parts[name].begin}

    # ---- the functions of one lane that a step lifts; the pool comes first, then stacked tensors

    def recall(self, pool: Pool, params: Any, parts: State, batch: Batch) -> dict[str, Tensor]:
        """The rows that the parts rehearse now, by slice: `part`, or `part.name` where a part recalls several."""
        found: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            if part.recall:
                rows = part.recall(self._view(name, pool, params, parts, batch, batch=_bare(batch)))
                found |= {f"{name}.{k}": r for k, r in rows.items()} if isinstance(rows, dict) else {name: rows}
        return found

    def losses(self, pool: Pool, params: Any, parts: State, batch: Batch, slices: dict[str, tuple[Any, ...]], x: Any,
               y: Any, scores: Any) -> Loss:
        """The loss that the parts add to the batch's cross-entropy, or put in its place.

        Args:
            pool, params, parts, batch: of one lane.
            slices: by name the rows and weights of some examples of the pass, and where they stand in it.
            x, y, scores: of all examples of the pass.
        """
        alone = len(slices) == 1
        seen = {name: Slice(rows, weight, x, y, scores, name, None if alone else at)
                for name, (rows, weight, at) in slices.items()}
        found = []
        for name, part in self.parts.items():
            for hook in (part.criterion, part.loss):
                if hook:
                    recalled = seen.get(name) or (_several(seen, name) if part.recall else _NONE)
                    view = self._view(name, pool, params, parts, batch, batch=seen["batch"], recalled=recalled)
                    found.append(_checked(name, hook(view)))
        return reduce(add, found)

    def transform(self, pool: Pool, params: Any, parts: State, batch: Batch, grads: Params) -> Params:
        """The gradient after the transforms of the parts, in the order of the sum."""
        for name, part in self.parts.items():
            if part.grads:
                grads = part.grads(self._view(name, pool, params, parts, batch, batch=_bare(batch)), grads)
        return grads

    def after(self, pool: Pool, params: Any, parts: State, batch: Batch, grads: Any, at: slice, x: Any, y: Any,
              scores: Any) -> tuple[State, Params]:
        """The states of the parts after the update, and the parameters that they replace; the batch stands at `at`."""
        mine = Slice(batch.rows, batch.weight, x, y, scores, "batch", at)
        return _renewed("step", parts, {
            name: part.step(self._view(name, pool, params, parts, batch, batch=mine, grads=grads))
            for name, part in self.parts.items() if part.step})

    def applied(self, pool: Pool, params: Params, parts: State, task: Tensor, x: Tensor) -> Tensor:
        """Scores [n, C] of the network, as the parts with `weights` change it for a task."""
        return self.net.apply(self._effective(pool, params, parts, task, self._network(params)), x)

    def trained_pass(self, pool: Pool, params: Params, parts: State, task: Tensor, x: Tensor, real: Tensor,
                     u: Tensor | None = None) -> tuple[Tensor, Params]:
        """Scores [n, C] in training, and the network's statistics after the pass; see `Net.train`."""
        assert self.net.train is not None
        return self.net.train(self._effective(pool, params, parts, task, self._network(params)), x, real, u)

    def trained(self, params: Params) -> Params:
        """The parameters that the optimizer moves: all but what the start freezes, and the network's statistics."""
        return {k: p for k, p in params.items()
                if OWN in k or (k not in self.net.still and not self.start.frozen(k))}

    # ---- what hooks see

    def _network(self, params: Any) -> Any:
        """The network's parameters, without those of the parts."""
        return {k: p for k, p in resolved(params).items() if OWN not in k} if self._brings else params

    @cached_property
    def _named(self) -> dict[tuple[str, int], dict[str, slice] | None]:
        """Where the numbers of a part stand that names them, by part and batch size."""
        return {}

    @cached_property
    def _brings(self) -> bool:
        return any(part.params for part in self.parts.values())

    def _effective(self, pool: Pool, params: Any, parts: State, task: Tensor, given: Params) -> Params:
        """The parameters `given` as the parts with `weights` change them for a task."""
        for name, part in self.parts.items():
            if part.weights:
                view = View(parts.get(name, {}), self._network(params), self.net, pool, task=task,
                            own=self._own(name, params))
                given = part.weights(view, given)
        return given

    def _own(self, name: str, params: Any) -> Params:
        if not self._brings:
            return {}
        prefix = f"{name}{OWN}"
        return {k.removeprefix(prefix): p for k, p in resolved(params).items() if k.startswith(prefix)}

    def _view(self, name: str, pool: Pool, params: Any, parts: State, given: Batch | None = None,
              **fields: Any) -> View:
        net, task = self.net, given.task if given else fields.pop("task")
        u: Any = given.u.get(name) if given else _NONE
        if self.told:
            net = self._seen_in(pool, params, parts, task)
        if net.draws and given and NETWORK in given.u:
            net = _with_numbers(net, given.u[NETWORK])
        if u is not None and given:
            key = (name, given.rows.shape[0])
            if key not in self._named:
                counts = counted(self.parts[name].draws, key[1])
                self._named[key] = positions(counts) if isinstance(counts, dict) else None
            at = self._named[key]
            u = u if at is None else Numbers(u, at)
        return View(parts.get(name, {}), self._network(params), net, pool, u, task, own=self._own(name, params),
                    **fields)

    def _seen_in(self, pool: Pool, params: Any, parts: State, task: Tensor) -> Net:
        """The network with the weights that the parts give it in a task."""
        def through(f: Callable[..., Any]) -> Callable[..., Any]:
            return lambda given, *more: f(self._effective(pool, params, parts, task, given), *more)

        return self.net.passes(through)


def _with_numbers(net: Net, u: Any) -> Net:
    """The network whose training passes use the numbers of this step."""
    train = net.train
    assert train is not None
    return net._replace(train=lambda params, x, real, _: train(params, x, real, resolved(u)))


def _bare(batch: Batch) -> Slice:
    return Slice(batch.rows, batch.weight, _NONE, _NONE, _NONE)


def _several(slices: dict[str, Slice], name: str) -> Any:
    """What a part recalled as a dict, by the names in it; None where it recalled nothing."""
    return {k.removeprefix(f"{name}."): s for k, s in slices.items() if k.startswith(f"{name}.")} or _NONE


def _checked(name: str, found: Any) -> Loss:
    if isinstance(found, Loss):
        return found
    if isinstance(found, (int, float)):  # a constant, such as the sum over parameters of which there are none yet
        found = torch.tensor(float(found))
    if isinstance(found, Tensor) and not found.dim():
        return Loss(free=(found,))
    got = "nothing" if found is None else f"a tensor {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
    raise ValueError(f"{name}: a loss must be a Loss or one number, a tensor without axes, and its hook returned {got}")


def _renewed(hook: str, parts: State, found: dict[str, Any]) -> tuple[State, Params]:
    """Of what hooks returned, a state or (state, params) each: the states, and the parameters that they replace.

    Raises:
        ValueError: where a state has other entries than `init` gave it.
    """
    states, moved = State(), Params()
    for name, value in found.items():
        states[name], params = value if isinstance(value, tuple) else (value, {})
        moved |= params
        before, after = resolved(parts.get(name, {})), states[name]
        if not isinstance(after, dict) or after.keys() != before.keys():
            got = f"a dict of {', '.join(after) or 'nothing'}" if isinstance(after, dict) else f"{type(after).__name__}"
            raise ValueError(f"{name}: {hook} must return the state with the entries that init gave it "
                             f"({', '.join(before) or 'none'}), and returned {got}; to change parameters of the "
                             "network, return (view.state, {name: tensor})")
    return states, moved


def gradient_learner(net: Net, optimizer: Optimizer, parts: dict[str, Part],
                     start: Initialization | None = None) -> GradientLearner:
    """The learner that minimises its batch's cross-entropy plus the losses of `parts`.

    Each part sees its own state, its own rows and its own random numbers, so any sum of parts is a learner; the order
    matters only for gradient transforms.

    Args:
        net: the network.
        optimizer: moves its parameters.
        parts: by name; the name is also the source of the part's random numbers.
        start: where learning begins; None: the network's own random initialization.

    Raises:
        ValueError: where parts cannot be summed, with the reason.
    """
    start = start or Initialization(lambda net, seed: net.init(generator(seed, "init")))
    net = start.net or net
    check_sum(net, parts)
    return GradientLearner(net, optimizer, parts, start)
