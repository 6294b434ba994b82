"""Strategies that rehearse remembered examples."""

from dataclasses import replace

import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.importance import gradient_products
from lifelong.learning.learner import State
from lifelong.learning.losses import Loss, Slice, batch_loss, cross_entropy, example_losses, squared_error
from lifelong.learning.memory import RULES, Memory, greedy, reservoir
from lifelong.learning.parts import BATCH, Count, Part, View, rehearse
from lifelong.spec.bounds import above, at_least, at_most, one_of


def er(capacity: int = 500, replay: int = 0, memory: str = "reservoir", combine: str = "sum") -> Part:
    """Experience replay: learn each batch together with `replay` remembered examples.

    Args:
        capacity: examples remembered over the whole stream, 1 or more.
        replay: remembered examples rehearsed at every step; 0 means as many as the batch has.
        memory: 'reservoir', a uniform sample of all seen; 'class-balanced', an equal share for every class seen;
            'ring', the latest capacity // n_classes examples of every class.
        combine: 'sum' adds the mean loss of the replayed examples to that of the batch; 'mean' is one mean over both;
            'tasks' weighs the batch's by 1 / t and theirs by 1 - 1 / t in task t = 1, 2, ...

    Source: Chaudhry et al. 2019, arXiv:1902.10486. The replayed loss is added to the batch's ('mean' as in the code of
        Buzzega et al. 2020, arXiv:2004.07211; 'tasks' as in that of van de Ven et al. 2022, Nature Machine
        Intelligence 4); rehearsed examples are drawn with replacement, before the batch itself is remembered.
    """
    at_least(1, capacity=capacity)
    at_least(0, replay=replay)
    rule = RULES[one_of("memory", memory, RULES)]
    one_of("combine", combine, ("sum", "mean", "tasks"))

    def keep(pool: Pool) -> Memory:
        return rule(capacity, pool.n_classes)

    def together(view: View) -> Loss:
        new, old = cross_entropy(view.batch), cross_entropy(view.recalled)
        if combine == "tasks":
            return (new + view.task * old) / (view.task + 1)
        n, r = ((examples.rows >= 0).sum() for examples in (view.batch, view.recalled))
        return (n * new + r * old) / (n + r).clamp(min=1)

    if combine == "sum":
        return rehearse(keep, replay, classes=memory != "reservoir")
    return rehearse(keep, replay, loss=None, criterion=together, boundaries=combine == "tasks",
                    classes=memory != "reservoir")


def er_ace(capacity: int = 500, replay: int = 0, memory: str = "reservoir") -> Part:
    """Replay with asymmetric cross-entropy: a batch does not push down the classes that are not in it.

    In the batch's loss only the classes of its examples compete; in the replayed examples' loss, which is added, all.

    Args:
        capacity: examples remembered over the whole stream, 1 or more.
        replay: remembered examples rehearsed at every step; 0 means as many as the batch has.
        memory: what is remembered, as in `er`.

    Source: Caccia et al. 2022, arXiv:2104.05025 (ER-ACE). Classes that were never seen do not compete in the batch's
        loss either, from the first task on, as in the paper's equation; much published code lets them. Replayed
        examples compete with unseen classes too, as everywhere here.
    """

    def criterion(view: View) -> Loss:
        batch, competing = view.batch, view.pool.rivals(view.batch.y)
        own = torch.nn.functional.one_hot(batch.y, view.pool.n_classes).bool()
        present = (own & (batch.rows >= 0).unsqueeze(-1)).any(0) | own  # a pad's own class only keeps its loss finite
        return cross_entropy(batch, competing=present if competing is None else present & competing)

    return replace(er(capacity, replay, memory), criterion=criterion, classes=True)


def der(capacity: int = 500, replay: int = 0, alpha: float = 0.5) -> Part:
    """Dark experience replay: answer remembered examples as the network did when they came.

    Adds alpha times the squared difference between the scores now and the scores then, the mean over `replay`
    remembered examples and over units. The scores kept are those before the update of the step an example came in.
    Task-incremental: over the units of an example's own task, since those of other tasks are never asked about it.

    Args:
        capacity: examples remembered over the whole stream, 1 or more; each with its scores.
        replay: remembered examples rehearsed at every step; 0 means as many as the batch has.
        alpha: weight of the difference; 0 is fine-tuning.

    Source: Buzzega et al. 2020, arXiv:2004.07211 (DER), with the mean over units as in its code. There other tasks'
        units count in task-incremental streams too.
    """
    at_least(1, capacity=capacity)
    at_least(0, replay=replay, alpha=alpha)
    keep = reservoir(capacity)

    def begin(view: View) -> State:
        return keep.empty(scores=torch.zeros(capacity, view.pool.n_classes, dtype=view.pool.dtype))

    def remember(view: View) -> State:
        batch = view.batch
        return keep.add(view.state, batch.rows, batch.y, view.u.keep, scores=batch.scores)

    return rehearse(keep, replay, init=begin, step=remember,
                    loss=lambda view: _as_stored(keep, view, view.recalled, alpha))


def derpp(capacity: int = 500, replay: int = 0, alpha: float = 0.5, beta: float = 0.5) -> Part:
    """Dark experience replay that also rehearses the labels, of a second batch of remembered examples.

    Adds to the loss of `der` beta times the cross-entropy of `replay` more examples, drawn independently.

    Args:
        capacity: examples remembered over the whole stream, 1 or more; each with its scores.
        replay: remembered examples in each of the two batches; 0 means as many as the batch has.
        alpha: weight of the difference between scores now and then.
        beta: weight of the cross-entropy; 0 is `der`.

    Source: Buzzega et al. 2020, arXiv:2004.07211 (DER++); differences as in `der`.
    """
    at_least(0, beta=beta)
    keep = reservoir(capacity)

    def recall(view: View) -> dict[str, Tensor]:
        return {"scores": keep.pick(view.state, view.u.pick), "labels": keep.pick(view.state, view.u.labels)}

    def loss(view: View) -> Loss:
        return _as_stored(keep, view, view.recalled["scores"], alpha) + beta * cross_entropy(view.recalled["labels"])

    draws = {"keep": BATCH, "pick": replay or BATCH, "labels": replay or BATCH}
    return replace(der(capacity, replay, alpha), draws=draws, recall=recall, loss=loss)


def _as_stored(keep: Memory, view: View, recalled: Slice, strength: float) -> Loss:
    """The mean squared change of the scores of `recalled`, which `view.u.pick` chose, since they were stored."""
    stored = keep.stored(view.state, view.u.pick, "scores")
    return squared_error(recalled, stored, strength, view.pool.rivals(recalled.y))


def mir(capacity: int = 500, replay: int = 0, subsample: int = 50, lr: float = 0.1, memory: str = "reservoir") -> Part:
    """Maximally interfered retrieval: replay that rehearses what the batch would make the network forget.

    Of `subsample` remembered examples those are rehearsed whose loss grows most by one step of gradient descent on the
    batch alone, parameters - lr * gradient.

    Args:
        capacity: examples remembered over the whole stream, 1 or more.
        replay: remembered examples rehearsed at every step, at most `subsample`; 0 means as many as the batch has.
        subsample: remembered examples that are looked at, 1 or more.
        lr: length of the step that is tried, above 0.
        memory: what is remembered, as in `er`.

    Source: Aljundi et al. 2019, arXiv:1908.04742 (ER-MIR, growth since the last update). The subsample is drawn with
        replacement; an example that was drawn twice is rehearsed twice only where there are no others. The step that is
        tried has its own length, whatever the optimizer, and moves frozen parameters too; with batch normalisation it
        follows the gradient of a training pass, and growth is measured with the running statistics.
    """
    at_least(1, subsample=subsample)
    above(0, lr=lr)
    at_most(subsample, replay=replay)
    part, rule = er(capacity, subsample, memory), RULES[memory]

    def recall(view: View) -> Tensor:
        batch = view.batch
        rows = rule(capacity, view.pool.n_classes).pick(view.state, view.u.pick)
        grads = torch.func.grad(batch_loss(view.net, view.pool, batch.rows, batch.weight))(view.params)
        moved = {k: p - lr * grads[k] for k, p in view.params.items()}
        losses = example_losses(view.net, view.pool, rows)
        rows = rows.gather(0, (losses(moved) - losses(view.params)).argsort(descending=True, stable=True))
        again = (rows.unsqueeze(0) == rows.unsqueeze(1)).tril(-1).any(1)
        return rows.gather(0, again.to(rows.dtype).argsort(stable=True))[: replay or len(batch.rows)]

    return replace(part, recall=recall)


def gss(capacity: int = 500, replay: int = 0, reference: int = 10) -> Part:
    """Gradient-based sample selection, greedy: remember examples whose gradients point apart; replay as in `er`.

    An example's score is 1 + the largest cosine between its gradient and those of `reference` remembered examples; 1
    while nothing is remembered. While there is room it is kept. After that a score below 1 may take the place of a
    remembered example i, drawn in proportion to the scores C_i that they came with, with chance C_i / (C_i + score).

    Args:
        capacity: examples remembered over the whole stream, 1 or more.
        replay: remembered examples rehearsed at every step; 0 means as many as the batch has.
        reference: remembered examples whose gradients are compared with, 1 or more, drawn with replacement.

    Source: Aljundi et al. 2019, arXiv:1903.08671, the greedy algorithm, with the gradients after the step's update. One
        reference serves a batch, drawn before the batch is remembered; the replayed loss is added to the batch's. The
        authors' code differs from their algorithm and from this: gradients of whole batches for reference, two updates
        a step, no trade unless the batch's mean gradient points away, places drawn by scores shifted to begin at 0.
    """
    at_least(1, capacity=capacity, reference=reference)
    at_least(0, replay=replay)
    keep = greedy(capacity)

    def remember(view: View) -> State:
        batch, n = view.batch, len(view.batch.rows)
        others = keep.pick(view.state, view.u.compare)
        products = gradient_products(view.net, view.params, view.pool, torch.cat([batch.rows, others]))
        length = products.diagonal().clamp(min=torch.finfo(products.dtype).tiny).sqrt()
        cosine = products[:n, n:] / length[:n].unsqueeze(-1) / length[n:]
        score = 1 + torch.where(others >= 0, cosine, 0.0).amax(1).clamp(-1, 1)
        return keep.add(view.state, batch.rows, batch.y, view.u.trade, score=score)

    draws: dict[str, Count] = {"trade": lambda batch: 2 * batch, "compare": reference, "pick": replay or BATCH}
    return rehearse(keep, replay, draws=draws, step=remember, classes=True)
