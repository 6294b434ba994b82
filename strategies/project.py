"""Strategies that turn the gradient away from what would hurt earlier tasks."""

import torch

from lifelong.learner import Params, Part, State, View, real
from lifelong.losses import fit
from lifelong.memory import reservoir
from lifelong.registry import at_least


def agem(capacity: int = 1000, reference: int = 256) -> Part:
    """Averaged gradient episodic memory: no step may raise the loss on remembered examples of earlier tasks.

    Where the gradient g and the memory's gradient r point apart, g becomes g - (g.r / r.r) r.

    Args:
        capacity: examples of earlier tasks that are remembered, 1 or more.
        reference: remembered examples that make r at every step, 1 or more.

    Source: Chaudhry et al. 2019, arXiv:1812.00420. The memory is a uniform sample of all earlier tasks in place of a
        ring for each class; use it with plain gradient descent, since momentum or Adam undo the projection.
    """
    at_least(1, capacity=capacity, reference=reference)
    keep = reservoir(capacity)

    def project(view: View, grads: Params) -> Params:
        rows = keep.pick(view.state, view.u)
        r = torch.func.grad(fit(view.net, view.pool, rows, real(rows, view.pool.dtype)))(view.params)
        dot = torch.stack([(grads[k] * r[k]).sum() for k in grads]).sum()
        length = torch.stack([r[k].square().sum() for k in grads]).sum()
        # An empty memory has r = 0: nothing to project on.
        size = torch.where((dot < 0) & (length > 0), dot / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
        return {k: g - size * r[k] for k, g in grads.items()}

    def remember(view: View) -> State:
        _, y = view.pool.fetch(view.batch.rows)
        return keep.add(view.state, view.batch.rows, y, view.u)

    return Part(init=lambda view: keep.empty(), draws=reference, grads=project, task=remember, boundaries=True)
