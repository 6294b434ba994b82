"""Strategies that predict with the features of remembered exemplars or train on the memory alone."""

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
    """Features [B, F], scaled to length 1."""
    if net.features is None:
        raise ValueError("this model does not say what its features are: give it a method features(x)")
    return F.normalize(net.features(params, x), dim=-1)


def herd(z: Tensor, member: Tensor, picks: int) -> Tensor:
    """Herding: indices [picks, C] of the examples of each class whose running mean stays nearest to the class mean.

    The k-th is p_k = argmin over x of |mu - (z(x) + z(p_1) + ... + z(p_{k-1})) / k|; each example is chosen at most
    once, and -1 follows the last example of a class. All classes choose at the same time.

    Args:
        z: features [n, F].
        member: [n, C] bool, True for the class of each example; False everywhere for padding.
        picks: number of examples per class.

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
    """Mask [C] of the units of tasks 0 to `last`."""
    classes = view.pool.classes
    return (classes & (torch.arange(len(classes), device=classes.device) <= last).unsqueeze(-1)).any(0)


def icarl(capacity: int = 2000, replay: int = 0) -> Part:
    """iCaRL: chooses exemplars by herding and predicts the class whose exemplars have the nearest mean feature.

    The loss is the binary cross-entropy over the units of all classes so far. Targets are the labels for new units and
    the outputs of the network before the task for old units. Batch and exemplars form one set of equally weighted
    examples. Of each class the capacity / (classes so far) exemplars chosen first are kept.

    Args:
        capacity: exemplars of all classes together, at least the number of classes.
        replay: replayed exemplars per step, drawn with replacement; 0 replays as many as the batch has.

    Source: Rebuffi et al. 2017, arXiv:1611.07725. The paper shuffles new examples and exemplars together, so the share
        of exemplars in a step falls with the size of the task; here `replay` sets it, because a step does not know
        the length of its task. As in the authors' code, features and the class means used for prediction are scaled to
        length 1, but the target mean and the running means of herding are not. A class has at most as many exemplars
        as after a first task of average size.
    """
    at_least(1, capacity=capacity)
    at_least(0, replay=replay)
    keep = class_balanced(capacity)  # only its `pick` is used; `choose` selects the exemplars

    def begin(view: View) -> State:
        pool = view.pool
        if pool.scenario == "domain":
            raise ValueError("icarl: it keeps exemplars of each class, but in domain-incremental streams classes share "
                             "their units: choose the scenario 'class' or 'task'")
        if capacity < pool.n_classes:
            raise ValueError(f"icarl: capacity must be {pool.n_classes} or more, one for each class, got {capacity}")
        empty = torch.full((capacity,), -1)
        unit_features(view.net, view.params, pool.fetch(empty[:1])[0])  # refuses a network without features
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
    """GDumb: keeps a class-balanced memory and, after each task, trains a network from scratch on the memory alone.

    Args:
        net: the network; training after every task starts from the seed's initialisation.
        capacity: maximum number of examples in the memory, 1 or more.
        steps: steps of gradient descent after every task, 1 or more; there are no other steps, whatever the stream's
            number of passes.
        replay: remembered examples per step, drawn with replacement, 1 or more.
        lr: first step size, above 0; it decays to 0 along half a cosine.
        momentum: momentum, in [0, 1).

    Source: Prabhu et al. 2020, "GDumb: a simple approach that questions our progress in continual learning", without
        its CutMix, weight decay and clipping, with one cosine instead of restarts, and with a uniform sample of each
        class instead of its first examples. The paper's MNIST runs make 128 passes in batches of 16.
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
