"""Strategies that give every task its own weights or units; predictions need the number of the task."""

import re

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import State
from lifelong.learning.parts import Part, View
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least, below


def _along(values: Tensor, like: Tensor) -> Tensor:
    """`values` [units], reshaped to broadcast along the first axis of `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _units_task(pool: Pool) -> Tensor:
    """The task [C] of each output unit."""
    return pool.classes.long().argmax(0)


def _check_head(name: str, net: Net, params: Params, pool: Pool) -> None:
    if not net.head or any(params[k].shape[0] != pool.n_classes for k in net.head):
        raise ValueError(f"{name} gives every task output units of its own, and this model does not say which "
                         "parameters they are: its last layer must be linear, with one output a class")


def _layers(name: str, net: Net, params: Params) -> list[list[str]]:
    """Names of the parameters of each hidden layer, in order; their first axis is the layer's units."""
    layers: dict[int, list[str]] = {}
    for k in params:
        match = re.fullmatch(r"(?:hidden|conv|norm)(\d+)\.(?:weight|bias)", k)
        if match:
            layers.setdefault(int(match[1]), []).append(k)
        elif k not in net.head:
            raise ValueError(f"{name} knows the hidden units of mlp and conv4 alone, not of a model with {k!r}")
    if not layers:
        raise ValueError(f"{name} needs hidden units, and this model has none")
    return [layers[i] for i in sorted(layers)]


def packnet(prune: float = 0.75, after: int = 0) -> Part:
    """PackNet: every task keeps its largest weights, which never change again, and leaves the rest to later tasks.

    At the end of a task the smallest of the weights that it could change are freed in every layer; the task owns the
    others. Predictions for a task use its own weights and those of earlier tasks; all others are 0. Output units belong
    to their task. Biases and all other vectors of hidden layers belong to the first task.

    Args:
        prune: share of the free weights of each layer that a task leaves free, in (0, 1).
        after: number of steps of a task before pruning; the remaining steps retrain the kept weights. With 0, or more
            steps than the task has, it is pruned at its end, without retraining. Above 0 every step ranks the weights
            and takes about four times as long.

    Source: Mallya & Lazebnik 2018, arXiv:1711.05769. In the paper training and retraining have separate steps, and
        pruned weights start the next task at 0; here they start at their last values.
    """
    above(0, prune=prune)
    below(1, prune=prune)
    at_least(0, after=after)

    def begin(view: View) -> State:
        _check_head("packnet", view.net, view.params, view.pool)
        nobody = {k: torch.full(p.shape, view.pool.n_tasks, dtype=torch.int16) for k, p in view.params.items()}
        return {"owner": nobody, "kept": dict(view.params), "done": torch.tensor(0), "step": torch.tensor(0),
                "pruned": torch.tensor(False)}

    def claimed(view: View) -> Params:
        """The task that owns each weight after this task has chosen its own."""
        done, owners = view.state["done"], {}
        for k, owner in view.state["owner"].items():
            free = owner >= done  # includes the weights that this task chose before
            if k in view.net.head:
                mine = free & _along(_units_task(view.pool) == done, owner)
            elif owner.dim() < 2:
                mine = free
            else:
                size = torch.where(free, view.params[k].abs(), -1.0).flatten()
                order = size.argsort(descending=True, stable=True)
                chosen = torch.arange(len(order), device=order.device) < (
                    (1 - prune) * free.sum().to(size.dtype)).round()
                mine = torch.zeros_like(chosen).scatter(0, order, chosen).view(owner.shape)
            owners[k] = torch.where(mine, done, owner).to(owner.dtype)
        return owners

    def weights(view: View, params: Params) -> Params:
        state, task = view.state, view.task
        done = state["done"]
        # A task uses its own and earlier weights and, until it is pruned, all weights that it may change.
        limit = torch.where((task >= done) & ~state["pruned"], view.pool.n_tasks, task)
        worn = {}
        for k, p in params.items():
            owner = state["owner"][k]
            worn[k] = torch.where(owner <= limit, torch.where(owner < done, state["kept"][k], p), 0.0)
        return worn

    def count(view: View) -> State:
        state = view.state
        step = state["step"] + 1
        turn, owners = step == after, claimed(view)
        return state | {"owner": {k: torch.where(turn, new, state["owner"][k]) for k, new in owners.items()},
                        "step": step, "pruned": state["pruned"] | turn}

    def consolidate(view: View) -> State:
        state, done = view.state, view.state["done"]
        owners = {k: torch.where(state["pruned"], state["owner"][k], new) for k, new in claimed(view).items()}
        kept = {k: torch.where(owners[k] == done, view.params[k], v) for k, v in state["kept"].items()}
        return {"owner": owners, "kept": kept, "done": done + 1, "step": torch.zeros_like(state["step"]),
                "pruned": torch.zeros_like(state["pruned"])}

    return Part(init=begin, weights=weights, step=count if after else None, task=consolidate, boundaries=True)


def xdg(gated: float = 0.8) -> Part:
    """Context-dependent gating (XdG): disables a different random share of the hidden units in each task.

    The weights, bias and normalisation of a disabled unit are 0 in that task, so it outputs 0 and learns nothing.

    Args:
        gated: share of the units of every hidden layer disabled in a task, in [0, 1); at least one unit stays enabled.

    Source: Masse et al. 2018, arXiv:1802.01569, which also combines it with synaptic stabilisation (`xdg + si`,
        `xdg + ewc`). Only for mlp and conv4, whose units output 0 if their weights are 0; in conv4 the normalisation
        still includes the disabled channels, as zeros.
    """
    at_least(0, gated=gated)
    below(1, gated=gated)

    def begin(view: View) -> State:
        gates = {}
        for i, layer in enumerate(_layers("xdg", view.net, view.params)):
            units = len(view.params[layer[0]])
            rank = torch.rand(view.pool.n_tasks, units, generator=view.generator).argsort(-1).argsort(-1)
            gates[str(i)] = rank >= min(round(float(gated) * units), units - 1)
        return gates

    def weights(view: View, params: Params) -> Params:
        worn = dict(params)
        for i, layer in enumerate(_layers("xdg", view.net, params)):
            gates = view.state[str(i)]
            on = gates.gather(0, view.task.view(1, 1).expand(1, gates.shape[1])).squeeze(0)
            worn |= {k: torch.where(_along(on, params[k]), params[k], 0.0) for k in layer}
        return worn

    return Part(init=begin, weights=weights, boundaries=True)


def progressive() -> Part:
    """Progressive networks: a column of hidden units per task, which reads all earlier columns and is then frozen.

    The columns are equal parts of each hidden layer, fixed in advance, so a wider model has wider columns. A unit is
    connected to the units of its own and earlier columns, and an output unit to the columns up to its task.
    Predictions for task t use columns 0..t; after task t, column t never changes again.

    Source: Rusu et al. 2016, arXiv:1606.04671, with plain lateral connections instead of its adapters. Only for mlp
        and conv4. Weights are initialised at the scale of the whole network, and the columns of conv4 share its
        normalisation.
    """

    def columns(view: View, params: Params) -> dict[str, tuple[Tensor, Tensor]]:
        """For each parameter, the column of every unit and of every input."""
        tasks, device = view.pool.n_tasks, view.pool.classes.device
        of, before = {}, torch.zeros(1, dtype=torch.int64, device=device)
        for layer in [*_layers("progressive", view.net, params), list(view.net.head)]:
            units = len(params[layer[0]])
            own = torch.arange(units, device=device) * tasks // units
            own = _units_task(view.pool) if layer[0] in view.net.head else own
            for k in layer:
                # An image flattened channel by channel has several inputs for each unit.
                inputs = params[k].shape[1] if params[k].dim() > 1 else len(before)
                of[k] = own, before.repeat_interleave(inputs // len(before))
            before = own
        return of

    def begin(view: View) -> State:
        _check_head("progressive", view.net, view.params, view.pool)
        for layer in _layers("progressive", view.net, view.params):
            if (units := len(view.params[layer[0]])) < view.pool.n_tasks:
                raise ValueError(f"progressive needs a unit for each task in every hidden layer: {layer[0]} has "
                                 f"{units} for {view.pool.n_tasks} tasks")
        return {"kept": dict(view.params), "done": torch.tensor(0)}

    def weights(view: View, params: Params) -> Params:
        worn = {}
        for k, (own, reads) in columns(view, params).items():
            p = torch.where(_along(own < view.state["done"], params[k]), view.state["kept"][k], params[k])
            there = _along(own <= view.task, p)
            if p.dim() > 1:
                there = there & (reads <= own.unsqueeze(1)).view(len(own), -1, *[1] * (p.dim() - 2))
            worn[k] = torch.where(there, p, 0.0)
        return worn

    def consolidate(view: View) -> State:
        done = view.state["done"]
        kept = {k: torch.where(_along(own == done, p), p, view.state["kept"][k])
                for k, (own, _) in columns(view, view.params).items() for p in [view.params[k]]}
        return {"kept": kept, "done": done + 1}

    return Part(init=begin, weights=weights, task=consolidate, boundaries=True)
