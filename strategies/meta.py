"""Online meta-learning: learners whose update is a sequence of gradient steps on single examples."""

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import NETWORK, Batch, Learner, State
from lifelong.learning.losses import batch_loss
from lifelong.learning.memory import reservoir
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator, many
from lifelong.spec.bounds import above, at_least


def mer(net: Net, capacity: int = 500, replay: int = 5, steps: int = 2, lr: float = 0.03, beta: float = 0.3,
        gamma: float = 1.0) -> Learner:
    """Meta-experience replay (MER): Reptile over sequences of single examples, one new and several remembered.

    For every example of a batch in turn, gradient descent runs over `steps` sequences, each the example and then
    `replay` remembered ones, one at a time. After each sequence the parameters become begin + beta * (end - begin), and
    after all sequences of the example begin + gamma * (end - begin). Then the example is remembered.

    Args:
        net: the network.
        capacity: maximum number of examples in the memory, a uniform sample of all seen, 1 or more.
        replay: remembered examples in each sequence, drawn with replacement, 0 or more.
        steps: sequences per example, 1 or more.
        lr: step size of gradient descent, above 0.
        beta: Reptile step size of a sequence, above 0; 1 keeps its end.
        gamma: Reptile step size of an example, above 0; with both 1 the method is gradient descent on single examples.

    Source: Riemer et al. 2019, arXiv:1810.11910, algorithm 1, in the order of the authors' code, which puts the new
        example first. The paper has batches of one; a batch of B takes B * steps * (1 + replay) gradients in sequence.
    """
    at_least(1, capacity=capacity, steps=steps)
    at_least(0, replay=replay)
    above(0, lr=lr, beta=beta, gamma=gamma)
    _one_by_one("mer", net)
    keep = reservoir(capacity)

    def toward(params: Params, begin: Params, share: float) -> Params:
        return {k: torch.lerp(begin[k], p, share) for k, p in params.items()}

    def init(seed: int, pool: Pool) -> State:
        return {"params": {k: p.to(pool.dtype) for k, p in net.init(generator(seed, "init")).items()},
                "memory": keep.empty()}

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        params, memory = state["params"], state["memory"]
        size = len(batch.rows)
        numbers = _numbers(net, batch, 1 + size * steps * (1 + replay))
        loss = batch_loss(net, pool, batch.rows, batch.weight, next(numbers))(params)
        _, y = pool.fetch(batch.rows)
        rank, draws = batch.u["mer"][:size].split(1), batch.u["mer"][size:].view(size, steps, replay)
        for row, unit, r, u in zip(batch.rows.split(1), y.split(1), rank, draws, strict=True):
            example = params
            for draw in u:
                sequence = params
                rows = torch.cat([row, keep.pick(memory, draw)])
                for one in torch.where(row >= 0, rows, -1).split(1):
                    grads = torch.func.grad(batch_loss(net, pool, one, u=next(numbers)))(params)
                    params = {k: p - lr * grads[k] for k, p in params.items()}
                params = toward(params, sequence, beta)
            params = toward(params, example, gamma)
            memory = keep.add(memory, row, unit, r)
        return {"params": params, "memory": memory}, {"loss": loss}

    return Learner(init, observe, lambda state, pool, x: net.apply(state["params"], x),
                   draws=lambda batch_size: {"mer": batch_size * (1 + steps * replay)} | _draws(net))


def la_maml(net: Net, capacity: int = 500, replay: int = 10, glances: int = 3, rate: float = 0.15,
            meta_rate: float = 0.3, clip: float = 2.0) -> Learner:
    """La-MAML: learns a step size for every parameter, so that steps on new examples do not raise the loss of old ones.

    From w_0 = w, gradient descent learns the batch's examples one by one, w_i = w_{i-1} - relu(a) g_i, with step sizes
    a. The meta-loss is the mean over i of the loss of w_i on the batch and `replay` remembered examples. Then a takes a
    gradient step on the meta-loss with step size meta_rate, and w one with step sizes relu(a), using the new a.

    Args:
        net: the network.
        capacity: maximum number of examples in the memory, a uniform sample of all seen, 1 or more.
        replay: remembered examples in the meta-loss, 0 or more.
        glances: such updates per batch, each with a new random order of the examples, 1 or more.
        rate: initial step size of every parameter, above 0.
        meta_rate: step size for learning the step sizes; 0 keeps them constant.
        clip: above 0; the gradients of w and of a (each over all parameters) are scaled down to at most this norm.

    Source: Gupta et al. 2020, arXiv:2007.13904, algorithm 1, first order as in the authors' runs on MNIST: the g_i
        are constants in the meta-gradient.
    """
    at_least(1, capacity=capacity, glances=glances)
    at_least(0, replay=replay, meta_rate=meta_rate)
    above(0, rate=rate, clip=clip)
    _one_by_one("la_maml", net)
    keep = reservoir(capacity)

    def cut(grads: Params) -> Params:
        length = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()
        return {k: g * (clip / (length + 1e-6)).clamp(max=1) for k, g in grads.items()}

    def init(seed: int, pool: Pool) -> State:
        params = {k: p.to(pool.dtype) for k, p in net.init(generator(seed, "init")).items()}
        return {"params": params, "rates": {k: torch.zeros_like(p) + rate for k, p in params.items()},
                "memory": keep.empty()}

    def glance(params: Params, rates: Params, pool: Pool, rows: Tensor, old: Tensor,
               numbers: Iterator[Tensor | None]) -> tuple[Params, Params]:
        both = torch.cat([rows, old])
        meta = torch.func.grad(batch_loss(net, pool, both, u=next(numbers)))
        fast, path = params, {k: torch.zeros_like(p) for k, p in params.items()}
        for_params, for_rates = path, path
        for one in rows.split(1):
            grads = torch.func.grad(batch_loss(net, pool, one, u=next(numbers)))(fast)
            path = {k: path[k] + g for k, g in grads.items()}
            fast = {k: w - rates[k].relu() * grads[k] for k, w in fast.items()}
            slope = meta(fast)
            counts = (one >= 0).to(pool.dtype)  # a step on padding changes nothing; its meta-loss is left out
            for_params = {k: g + counts * slope[k] for k, g in for_params.items()}
            for_rates = {k: g - counts * slope[k] * path[k] * (rates[k] > 0) for k, g in for_rates.items()}
        n = (rows >= 0).sum().clamp(min=1)
        down, along = (cut({k: g / n for k, g in grads.items()}) for grads in (for_rates, for_params))
        rates = {k: a - meta_rate * down[k] for k, a in rates.items()}
        return {k: w - rates[k].relu() * along[k] for k, w in params.items()}, rates

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        params, rates, memory = state["params"], state["rates"], state["memory"]
        size = len(batch.rows)
        numbers = _numbers(net, batch, 1 + glances * (1 + size))
        loss = batch_loss(net, pool, batch.rows, batch.weight, next(numbers))(params)
        _, y = pool.fetch(batch.rows)
        rank, *draws = batch.u["la_maml"].split([size] + glances * [size + replay])
        for number, u in enumerate(draws):
            rows = batch.rows.gather(0, u[:size].argsort())
            params, rates = glance(params, rates, pool, rows, keep.pick(memory, u[size:]), numbers)
            if number == 0:
                memory = keep.add(memory, batch.rows, y, rank)
        return {"params": params, "rates": rates, "memory": memory}, {"loss": loss}

    return Learner(init, observe, lambda state, pool, x: net.apply(state["params"], x),
                   draws=lambda batch_size: {"la_maml": batch_size + glances * (batch_size + replay)} | _draws(net))


def _draws(net: Net) -> dict[str, int]:
    return {NETWORK: net.draws} if net.draws else {}


def _numbers(net: Net, batch: Batch, passes: int) -> Iterator[Tensor | None]:
    """The random numbers of each forward pass of a step, all derived from the one number of the step."""
    if not net.draws:
        return repeat(None)
    return iter(many(batch.u[NETWORK][0], passes * net.draws).view(passes, net.draws).unbind())


def _one_by_one(name: str, net: Net) -> None:
    if net.still:
        raise ValueError(f"{name} learns one example at a time, of which batch normalisation has no statistics: use a "
                         "network with norm='group'")
