"""Strategies that replay remembered examples."""

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
        capacity: maximum number of examples in the memory, 1 or more.
        replay: replayed examples per step; 0 replays as many as the batch has.
        memory: 'reservoir', a uniform sample of all examples seen; 'class-balanced', an equal share for every class
            seen; 'ring', the latest capacity // n_classes examples of every class.
        combine: 'sum' adds the mean loss of the replayed examples to that of the batch; 'mean' is one mean over both;
            'tasks' weights the loss of the batch by 1 / t and the replayed loss by 1 - 1 / t in task t = 1, 2, ...

    Source: Chaudhry et al. 2019, arXiv:1902.10486. By default the replayed loss is added to the loss of the batch.
        'mean' follows the code of Buzzega et al. 2020, arXiv:2004.07211, and 'tasks' that of van de Ven et al. 2022,
        Nature Machine Intelligence 4. Replayed examples are drawn with replacement before the batch is remembered.
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
    """ER with asymmetric cross-entropy (ER-ACE): a batch does not lower the scores of classes absent from it.

    The softmax in the loss of the batch covers only the classes in the batch. The softmax in the loss of the replayed
    examples, which is added, covers all classes.

    Args:
        capacity: maximum number of examples in the memory, 1 or more.
        replay: replayed examples per step; 0 replays as many as the batch has.
        memory: rule of the memory, as in `er`.

    Source: Caccia et al. 2022, arXiv:2104.05025 (ER-ACE). As in the paper's equation, the softmax of the batch leaves
        out classes not seen yet, from the first task on; much published code includes them. The softmax of replayed
        examples includes unseen classes, as in all strategies here.
    """

    def criterion(view: View) -> Loss:
        batch, competing = view.batch, view.pool.rivals(view.batch.y)
        own = torch.nn.functional.one_hot(batch.y, view.pool.n_classes).bool()
        present = (own & (batch.rows >= 0).unsqueeze(-1)).any(0) | own  # the loss of padding stays finite
        return cross_entropy(batch, competing=present if competing is None else present & competing)

    return replace(er(capacity, replay, memory), criterion=criterion, classes=True)


def der(capacity: int = 500, replay: int = 0, alpha: float = 0.5) -> Part:
    """Dark experience replay (DER): keeps the scores of remembered examples near their stored scores.

    Adds alpha times the squared difference between the current and the stored scores, averaged over `replay`
    remembered examples and over output units. The stored scores are those before the update of the step in which an
    example arrived. In task-incremental streams the average is over the units of an example's own task, because the
    other units are never evaluated on it.

    Args:
        capacity: maximum number of examples in the memory, 1 or more; their scores are stored too.
        replay: replayed examples per step; 0 replays as many as the batch has.
        alpha: weight of the squared difference; 0 is fine-tuning.

    Source: Buzzega et al. 2020, arXiv:2004.07211 (DER), with the mean over units as in the authors' code. That code
        includes the units of other tasks in task-incremental streams.
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
    """DER++: dark experience replay with labels, the cross-entropy of a second batch of remembered examples.

    Adds beta times the cross-entropy of `replay` further examples, drawn independently, to the loss of `der`.

    Args:
        capacity: maximum number of examples in the memory, 1 or more; their scores are stored too.
        replay: replayed examples in each of the two batches; 0 replays as many as the batch has.
        alpha: weight of the squared difference between current and stored scores.
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
    """The mean squared change in the scores of `recalled`, picked with `view.u.pick`, since they were stored."""
    stored = keep.stored(view.state, view.u.pick, "scores")
    return squared_error(recalled, stored, strength, view.pool.rivals(recalled.y))


def mir(capacity: int = 500, replay: int = 0, subsample: int = 50, lr: float = 0.1, memory: str = "reservoir") -> Part:
    """Maximally interfered retrieval (MIR): replays the examples whose loss a step on the batch would raise most.

    Of `subsample` remembered examples, those are replayed whose loss rises most after a trial step of gradient descent
    on the batch alone, parameters - lr * gradient.

    Args:
        capacity: maximum number of examples in the memory, 1 or more.
        replay: replayed examples per step, at most `subsample`; 0 replays as many as the batch has.
        subsample: remembered examples to choose from, 1 or more.
        lr: step size of the trial step, above 0.
        memory: rule of the memory, as in `er`.

    Source: Aljundi et al. 2019, arXiv:1908.04742 (ER-MIR, with the rise since the last update). The subsample is drawn
        with replacement; an example drawn twice is replayed twice only if there are no others. The trial step does not
        depend on the optimizer and also changes frozen parameters. With batch normalisation its gradient is that of a
        training pass, and the rise is measured with the running statistics.
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
    """Greedy gradient-based sample selection (GSS): remembers examples with dissimilar gradients; replay as in `er`.

    The score of an example is 1 + the largest cosine between its gradient and those of `reference` remembered examples,
    or 1 if the memory is empty. While there are empty slots, every example is remembered. In a full memory, an example
    with a score below 1 replaces a remembered example i, drawn in proportion to the stored scores C_i, with probability
    C_i / (C_i + score).

    Args:
        capacity: maximum number of examples in the memory, 1 or more.
        replay: replayed examples per step; 0 replays as many as the batch has.
        reference: remembered examples to compare gradients with, drawn with replacement, 1 or more.

    Source: Aljundi et al. 2019, arXiv:1903.08671, the greedy algorithm, with gradients after the update of the step.
        The reference examples are drawn once per batch, before it is remembered. The replayed loss is added to that of
        the batch. The authors' code differs from their algorithm and from this one: it compares with gradients of whole
        batches, makes two updates per step, replaces examples only if the batch's mean gradient points away, and draws
        slots by scores shifted to a minimum of 0.
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
