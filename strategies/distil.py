"""Strategies that distil from the network before the current task."""

import torch
from torch import Tensor

from lifelong.learning.learner import State
from lifelong.learning.losses import distillation
from lifelong.learning.parts import Part, View
from lifelong.spec.bounds import above, at_least


def lwf(strength: float = 1.0, temperature: float = 2.0) -> Part:
    """Learning without forgetting (LwF): distils old units on new examples from the network before the task.

    Task-incremental: one distillation loss per earlier task, over its units, and their sum. Domain-incremental: one
    loss over all units, times the number of earlier tasks. Class-incremental: one loss over the units of all earlier
    tasks.

    Args:
        strength: weight of the distillation loss; 0 is fine-tuning.
        temperature: T > 0 that softens both sets of scores.

    Source: Li & Hoiem 2016, arXiv:1606.09282, without its warm-up of the new head; weighted as in van de Ven & Tolias
        2019, arXiv:1904.07734. The network before the task uses its running statistics of batch normalisation.
    """
    at_least(0, strength=strength)
    above(0, temperature=temperature)

    def loss(view: View) -> Tensor:
        batch, pool, scores = view.batch, view.pool, view.batch.scores
        teacher = view.net.apply(view.state["teacher"], batch.x)
        earlier = torch.arange(pool.n_tasks, device=batch.y.device) < view.task
        groups = pool.classes & earlier.unsqueeze(-1)
        times = view.task if pool.scenario == "domain" else 1
        if pool.scenario != "task":
            groups = groups.any(0, keepdim=True)
        total = scores.new_zeros(())
        for units in groups:
            total = total + times * (distillation(scores, teacher, units, temperature) * batch.weight).sum()
        return strength * total

    def remember(view: View) -> State:
        return {"teacher": dict(view.params)}

    return Part(init=remember, loss=loss, task=remember, boundaries=True, classes=True)
