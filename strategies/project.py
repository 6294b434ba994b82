"""Strategies that project the gradient so that a step does not raise the losses of earlier tasks."""

import torch
from torch import Tensor

from lifelong.learning.learner import State
from lifelong.learning.losses import batch_loss
from lifelong.learning.memory import reservoir
from lifelong.learning.parts import Part, View
from lifelong.networks.net import Params
from lifelong.spec.bounds import at_least


def agem(capacity: int = 1000, reference: int = 256) -> Part:
    """Averaged gradient episodic memory (A-GEM): steps do not raise the loss on remembered examples of earlier tasks.

    With r the gradient on remembered examples, a gradient g with g.r < 0 becomes g - (g.r / r.r) r.

    Args:
        capacity: maximum number of remembered examples of earlier tasks, 1 or more.
        reference: remembered examples per step from which r is computed, 1 or more.

    Source: Chaudhry et al. 2019, arXiv:1812.00420. The memory is a uniform sample of all earlier tasks instead of a
        ring per class. Use it with plain gradient descent, because momentum and Adam undo the projection. Batch
        normalisation treats the remembered examples as a separate batch, as in published code.
    """
    at_least(1, capacity=capacity, reference=reference)
    keep = reservoir(capacity)

    def project(view: View, grads: Params) -> Params:
        rows = keep.pick(view.state, view.u)
        r = torch.func.grad(batch_loss(view.net, view.pool, rows))(view.params)
        dot = torch.stack([(grads[k] * r[k]).sum() for k in grads]).sum()
        length = torch.stack([r[k].square().sum() for k in grads]).sum()
        # An empty memory has r = 0, which leaves g unchanged.
        size = torch.where((dot < 0) & (length > 0), dot / length.clamp(min=torch.finfo(length.dtype).tiny), 0.0)
        return {k: g - size * r[k] for k, g in grads.items()}

    def remember(view: View) -> State:
        _, y = view.pool.fetch(view.batch.rows)
        return keep.add(view.state, view.batch.rows, y, view.u)

    return Part(init=lambda view: keep.empty(), draws=reference, grads=project, task=remember, boundaries=True)


def gem(capacity: int = 1000, margin: float = 0.5) -> Part:
    """Gradient episodic memory (GEM): steps do not raise the loss on the remembered examples of any earlier task.

    The rows of G are the gradients on the memory of each earlier task. A gradient g for which G g has a negative entry
    becomes g + G'v, where v minimises v'(G G' + eps) v / 2 + (G g)'v over v >= margin. With margin 0 this is, up to
    eps, the gradient nearest to g that raises no loss. Every step computes a gradient over the whole memory.

    Args:
        capacity: size of the memory, shared equally by all tasks of the stream; at least one example per task.
        margin: lower bound of v if any entry of G g is negative, 0 or more.

    Source: Lopez-Paz & Ranzato 2017, arXiv:1706.08840. Two details come from the authors' code, because the paper does
        not give them: eps = 1e-3, and the margin bounds v. The memory of a task holds its latest examples, as in the
        paper (the authors' ring buffer is not reset at a new task). Use it with plain gradient descent, because
        momentum and Adam undo the projection.
    """
    at_least(1, capacity=capacity)
    at_least(0, margin=margin)

    def begin(view: View) -> State:
        n_tasks = view.pool.n_tasks
        if capacity < n_tasks:
            raise ValueError(f"gem: capacity must be {n_tasks} or more, one for each task, got {capacity}")
        return {"rows": torch.full((n_tasks, capacity // n_tasks), -1)}

    def project(view: View, grads: Params) -> Params:
        def gradient(rows: Tensor) -> Params:
            loss = batch_loss(view.net, view.pool, rows)
            return torch.func.grad(lambda trained: loss(view.params | trained))({k: view.params[k] for k in grads})

        rows = view.state["rows"]
        earlier = {k: g.reshape(len(rows), -1) for k, g in torch.func.vmap(gradient)(rows).items()}
        held = (torch.arange(len(rows), device=rows.device) < view.task) & (rows >= 0).any(-1)
        gram = torch.stack([g @ g.mT for g in earlier.values()]).sum(0)
        dots = torch.stack([earlier[k] @ g.flatten() for k, g in grads.items()]).sum(0)
        rounding = torch.finfo(gram.dtype).eps * gram.diagonal().sum().double()  # may make gram indefinite
        v = cone(gram.double(), dots.double(), held, margin, 1e-3 + rounding)
        v = torch.where((held & (dots < 0)).any(), v, 0.0).to(gram.dtype)
        return {k: g + (v @ earlier[k]).view(g.shape) for k, g in grads.items()}

    def remember(view: View) -> State:
        rows, task = view.state["rows"], view.task
        seen = torch.cat([rows.index_select(0, task.view(1)).squeeze(0), view.batch.rows])
        last = seen.gather(0, (seen >= 0).to(torch.uint8).argsort(stable=True))[-rows.shape[1]:]
        here = torch.arange(len(rows), device=rows.device) == task
        return {"rows": torch.where(here.unsqueeze(-1), last, rows)}

    return Part(init=begin, grads=project, step=remember, boundaries=True)


def cone(gram: Tensor, dots: Tensor, held: Tensor, margin: float | Tensor,
         eps: float | Tensor = 1e-3) -> Tensor:
    """The v [T] that minimises v'(gram + eps) v / 2 + dots'v over v >= margin; v is 0 where `held` [T] is False.

    An active-set method: all entries start at their bound. Each step frees the entry with the steepest descent and
    moves to the optimum of the free entries, but stops where the first of them reaches its bound, which fixes it again.
    Each step lowers the objective, so no active set occurs twice. There are always 3 T steps, so that all lanes run
    together (the slowest of 13,000 random and degenerate problems took 2.3 T); a finished lane no longer changes.

    Source: Lawson & Hanson 1974, "Solving least squares problems", chapter 23, on the normal equations.
    """
    n = len(dots)
    eye, at = torch.eye(n, dtype=gram.dtype, device=gram.device), torch.arange(n, device=gram.device)
    p = torch.where(held & held.unsqueeze(-1), gram + eps * eye, 0.0)
    q = torch.where(held, dots + margin * p.sum(-1), 0.0)  # of u = v - margin, which is at least 0
    tiny = 1e-13 * q.abs().max()
    u, free = torch.zeros_like(q), torch.zeros_like(held)
    for _ in range(3 * n):
        block = torch.where(free & free.unsqueeze(-1), p, eye)
        best = torch.linalg.solve_ex(block, torch.where(free, -q, 0.0))[0]
        beyond = free & (best <= 0)
        share = torch.where(beyond, u / (u - best).clamp(min=torch.finfo(u.dtype).tiny), 1.0)
        u = u + share.min() * (best - u)
        stuck = beyond & (share <= share.min())
        u = torch.where(free & ~stuck, u, 0.0)
        slope = torch.where(held & ~free & ~beyond.any(), p @ u + q, 0.0)
        free = (free & ~stuck) | ((at == slope.argmin()) & (slope < -tiny))
    return torch.where(held, u + margin, 0.0)
