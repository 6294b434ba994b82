"""Strategies that choose what to remember, and learn or answer from the memory itself."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.learner import Batch, Learner, State
from lifelong.learning.losses import batch_loss_and_statistics
from lifelong.learning.memory import class_balanced
from lifelong.learning.parts import Part, View
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator, many
from lifelong.spec.bounds import above, at_least, below


def unit_features(net: Net, params: Params, x: Tensor) -> Tensor:
    """Features [B, F] of length 1."""
    if net.features is None:
        raise ValueError("this model does not say what its features are: give it a method features(x)")
    return F.normalize(net.features(params, x), dim=-1)


def herd(z: Tensor, member: Tensor, picks: int) -> Tensor:
    """The examples of each class whose running mean stays nearest to the class's mean, in order, [picks, C]; -1 where
    a class has no more.

    p_k = argmin over x of |mu - (z(x) + z(p_1) + ... + z(p_{k-1})) / k|, each example at most once; all classes choose
    at the same time.

    Args:
        z: features [n, F].
        member: [n, C] bool, which class each example belongs to; nowhere for a pad.
        picks: how many of each class.

    Source: Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4.
    """
    weight = member.to(z.dtype)
    mean = (weight.mT @ z) / weight.sum(0).clamp(min=1).unsqueeze(-1)
    total, chosen = torch.zeros_like(mean), []
    half = z.square().sum(-1, keepdim=True) / 2
    left = member
    at = torch.arange(len(z), device=z.device).unsqueeze(-1)
    for k in range(1, picks + 1):
        # |k mu - total - z|^2 / 2 is least where z'(k mu - total) - |z|^2 / 2 is largest.
        best = torch.where(left, z @ (k * mean - total).mT - half, -torch.inf).argmax(0)
        any_left = left.any(0)
        chosen.append(torch.where(any_left, best, -1))
        total = total + z.index_select(0, best)
        left = left & (at != best)
    return torch.stack(chosen)


def _units(view: View, last: Tensor) -> Tensor:
    """[C] bool, the units of the tasks up to number `last`."""
    classes = view.pool.classes
    return (classes & (torch.arange(len(classes), device=classes.device) <= last).unsqueeze(-1)).any(0)


def icarl(capacity: int = 2000, replay: int = 0) -> Part:
    """iCaRL: exemplars chosen by herding, classes answered by the nearest mean of their exemplars' features.

    The loss, over the units of all classes so far, is binary cross-entropy: new units against the label, old units
    against what the network answered before the task; batch and exemplars are one set, in which each example weighs
    the same. Of each class capacity / (classes so far) exemplars are kept, those chosen first.

    Args:
        capacity: exemplars over all classes, at least as many as there are classes.
        replay: exemplars rehearsed at every step, drawn with replacement; 0 means as many as the batch has.

    Source: Rebuffi et al. 2017, arXiv:1611.07725. There new examples and exemplars are shuffled together, so the
        exemplars' share of a step falls with the size of the task; here it is `replay`'s, since a step cannot know
        how long its task is. Features, and the means that answer, are scaled to length 1; the mean that herding aims
        at and the running means are not, as in the authors' code. A class keeps no more exemplars than it would have
        after a first task of average size.
    """
    at_least(1, capacity=capacity)
    at_least(0, replay=replay)
    keep = class_balanced(capacity)  # only for its way to draw: what stays is decided below

    def begin(view: View) -> State:
        pool = view.pool
        if pool.scenario == "domain":
            raise ValueError("icarl: it keeps exemplars of each class, but in domain-incremental streams classes share "
                             "their units: choose the scenario 'class' or 'task'")
        if capacity < pool.n_classes:
            raise ValueError(f"icarl: capacity must be {pool.n_classes} or more, one for each class, got {capacity}")
        empty = torch.full((capacity,), -1)
        unit_features(view.net, view.params, pool.fetch(empty[:1])[0])  # a network without features is refused now
        return {"rows": empty, "y": empty.clamp(min=0), "place": empty.clamp(min=0), "teacher": dict(view.params)}

    def recall(view: View) -> Tensor:
        return keep.pick(view.state, view.u)

    def loss(view: View) -> Tensor:
        batch, seen = view.batch, view.recalled
        x, y, scores = (torch.cat(pair) for pair in ((batch.x, seen.x), (batch.y, seen.y), (batch.scores, seen.scores)))
        target = F.one_hot(y, view.pool.n_classes).to(scores.dtype)
        before = view.net.apply(view.state["teacher"], x).sigmoid()
        target = torch.where(_units(view, view.task - 1), before, target)
        each = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        each = torch.where(_units(view, view.task), each, 0.0).sum(-1)
        present = (torch.cat([batch.rows, seen.rows]) >= 0).to(scores.dtype)
        return (each * present).sum() / present.sum().clamp(min=1)

    def choose(view: View) -> State:
        state, pool, rows = view.state, view.pool, view.batch.rows
        n_classes, share = pool.n_classes, capacity // _units(view, view.task).sum()
        z = torch.cat([unit_features(view.net, view.params, pool.fetch(part)[0]) for part in rows.split(1024)])
        _, y = pool.fetch(rows)
        member = F.one_hot(y, n_classes).bool() & (rows >= 0).unsqueeze(-1)
        picks = herd(z, member, min(len(rows), capacity // max(n_classes // pool.n_tasks, 1)))
        place = torch.arange(len(picks), device=rows.device).unsqueeze(-1).expand_as(picks)
        unit = torch.arange(n_classes, device=rows.device).expand_as(picks)
        new = torch.where(picks >= 0, rows.gather(0, picks.clamp(min=0).flatten()).view(picks.shape), -1)
        every = [torch.cat([state[k], v.flatten()]) for k, v in (("rows", new), ("y", unit), ("place", place))]
        kept = (every[0] >= 0) & (every[2] < share)
        first = kept.to(torch.uint8).argsort(descending=True, stable=True)[:capacity]
        rows, y, place = (torch.where(kept, v, empty).gather(0, first)
                          for v, empty in zip(every, (-1, 0, 0), strict=True))
        return {"rows": rows, "y": y, "place": place, "teacher": dict(view.params)}

    def answer(view: View, x: Tensor) -> Tensor:
        rows, y = view.state["rows"], view.state["y"]
        z = unit_features(view.net, view.params, view.pool.fetch(rows)[0])
        member = (F.one_hot(y, view.pool.n_classes) * (rows >= 0).unsqueeze(-1)).to(z.dtype)
        means = F.normalize(member.mT @ z, dim=-1)
        distance = torch.cdist(unit_features(view.net, view.params, x), means,
                               compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where(member.any(0), -distance, -torch.inf)

    return Part(init=begin, draws=lambda batch: replay or batch, recall=recall, criterion=loss, task=choose,
                predict=answer, boundaries=True, classes=True)


def gdumb(net: Net, capacity: int = 500, steps: int = 300, replay: int = 32, lr: float = 0.05,
          momentum: float = 0.9) -> Learner:
    """GDumb: remember an equal share of every class, and after each task train a network from scratch on that alone.

    Args:
        net: the network, begun anew after every task with the seed's own first weights.
        capacity: examples remembered over the whole stream, 1 or more.
        steps: of gradient descent after every task, 1 or more; they are this method's only ones, whatever the
            stream's own number of passes is.
        replay: remembered examples a step, drawn with replacement, 1 or more.
        lr: step size, above 0, that falls to 0 along half a cosine.
        momentum: in [0, 1).

    Source: Prabhu et al. 2020, "GDumb: a simple approach that questions our progress in continual learning", without
        its CutMix, weight decay and clipping, with one cosine in place of restarts, and with a uniform sample of each
        class in place of the first that came. Its MNIST runs make 128 passes in batches of 16.
    """
    at_least(1, capacity=capacity, steps=steps, replay=replay)
    above(0, lr=lr)
    at_least(0, momentum=momentum)
    below(1, momentum=momentum)
    keep = class_balanced(capacity)

    def init(seed: int, pool: Pool) -> State:
        params = {k: p.to(pool.dtype) for k, p in net.init(generator(seed, "init")).items()}
        return {"fresh": params, "params": params, "memory": keep.empty()}

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        _, y = pool.fetch(batch.rows)
        return state | {"memory": keep.add(state["memory"], batch.rows, y, batch.u["gdumb"])}, {}

    def end_task(state: State, pool: Pool, batch: Batch) -> State:
        params = state["fresh"]
        speed = {k: torch.zeros_like(p) for k, p in params.items()}
        picks, u = many(batch.u["gdumb"][0], steps * (replay + net.draws)).tensor_split([steps * replay])
        picked = keep.pick(state["memory"], picks).view(steps, replay)
        for step, (rows, own) in enumerate(zip(picked, u.view(steps, net.draws), strict=True)):
            loss = batch_loss_and_statistics(net, pool, rows, u=own)
            grads, moved = torch.func.grad(loss, has_aux=True)(params)
            speed = {k: momentum * v + grads[k] for k, v in speed.items()}
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            params = {k: p - rate * speed[k] for k, p in params.items()} | moved
        return state | {"params": params}

    return Learner(init, observe, lambda state, pool, x: net.apply(state["params"], x), end_task,
                   lambda batch_size: {"gdumb": batch_size}, boundaries=True, classes=True)
