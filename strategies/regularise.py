"""Strategies that hold parameters near where they served earlier tasks."""

import torch

from lifelong.learner import Params, Part, State, View, real
from lifelong.losses import fisher
from lifelong.registry import at_least, at_most, one_of


def ewc(strength: float = 10.0, decay: float = 1.0, mode: str = "separate", samples: int = 0,
        labels: str = "exact") -> Part:
    """Elastic weight consolidation: parameters that mattered for earlier tasks resist change.

    Adds strength / 2 * sum over parameters of F (parameter - anchor)^2, with F the diagonal Fisher information.

    Args:
        strength: lambda; 0 is fine-tuning.
        decay: gamma of the online mode, in [0, 1]: what earlier tasks' F keeps of its weight at every task.
        mode: 'separate', one penalty a task; 'online', one running F around the latest parameters.
        samples: examples of a task whose gradients make its F, drawn at random; 0 for all.
        labels: 'exact' averages over the network's own answers, 'empirical' takes the true label.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796 (separate); Schwarz et al. 2018, arXiv:1805.06370 (online). The
        separate penalties are quadratics, whose sum is one quadratic around their F-weighted mean plus a constant: that
        is what is stored, so a step costs the same at task 100 as at task 2, with the same gradient.
    """
    at_least(0, strength=strength, decay=decay, samples=samples)
    at_most(1, decay=decay)
    one_of("mode", mode, ("separate", "online"))
    one_of("labels", labels, ("exact", "empirical"))

    def begin(view: View) -> State:
        zero = {k: torch.zeros_like(p) for k, p in view.params.items()}
        return {"importance": zero, "anchor": dict(view.params)}

    def pull(view: View) -> Params:
        anchor, importance = view.state["anchor"], view.state["importance"]
        return {k: (p - anchor[k]).mul_(importance[k]).mul_(strength) for k, p in view.params.items()}

    def consolidate(view: View) -> State:
        rows, weight = view.batch.rows, view.batch.weight
        if 0 < samples < len(rows):
            rows = rows.gather(0, torch.where(rows >= 0, view.u, -1.0).topk(samples).indices)
            weight = real(rows, weight.dtype)
        new = fisher(view.net, view.params, view.pool, rows, weight, labels)
        old, anchor = view.state["importance"], view.state["anchor"]
        if mode == "online":
            return {"importance": {k: decay * old[k] + new[k] for k in new}, "anchor": dict(view.params)}
        total = {k: old[k] + new[k] for k in new}
        # Where nothing matters yet any anchor will do; the clamp only keeps 0 / 0 away.
        share = {k: new[k] / total[k].clamp(min=torch.finfo(new[k].dtype).tiny) for k in new}
        return {"importance": total, "anchor": {k: torch.lerp(anchor[k], view.params[k], share[k]) for k in new}}

    return Part(init=begin, pull=pull, task=consolidate, boundaries=True)
