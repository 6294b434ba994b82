"""Strategies that hold parameters near where they served earlier tasks."""

import torch

from lifelong.learning.importance import LABELS, fisher, sensitivity
from lifelong.learning.learner import State
from lifelong.learning.losses import Loss, Penalty, mean_weights, penalty_gradient, quadratic
from lifelong.learning.parts import Part, View
from lifelong.networks.net import Params
from lifelong.spec.bounds import above, at_least, at_most, one_of


def _zeros(params: Params) -> Params:
    return {k: torch.zeros_like(p) for k, p in params.items()}


def _begin(view: View) -> State:
    return {"importance": _zeros(view.params), "anchor": dict(view.params)}


def _stay(view: View, strength: float) -> Loss:
    return quadratic(view.state["anchor"], view.state["importance"], strength)


def _gain(view: View, strength: float) -> Params:
    """By how much the last move of each parameter lowered the loss without this part's own penalty, to first order."""
    before = {k: view.state["previous"][k] for k in view.grads}
    own = penalty_gradient(Penalty(strength, view.state["anchor"], view.state["importance"]), before)
    return {k: (own[k] - g) * (view.params[k] - before[k]) for k, g in view.grads.items()}


def l2(strength: float = 1.0) -> Part:
    """All parameters alike stay near the solution of the previous task.

    Adds strength / 2 * sum over parameters of (parameter - anchor)^2 from the second task on.

    Args:
        strength: lambda; 0 is fine-tuning.

    Source: the baseline of Kirkpatrick et al. 2017, arXiv:1612.00796.
    """
    at_least(0, strength=strength)

    def begin(view: View) -> State:
        return {"importance": {k: p.new_zeros(()) for k, p in view.params.items()}, "anchor": dict(view.params)}

    def consolidate(view: View) -> State:
        return {"importance": {k: p.new_ones(()) for k, p in view.params.items()}, "anchor": dict(view.params)}

    return Part(init=begin, loss=lambda view: _stay(view, strength), task=consolidate, boundaries=True)


def ewc(strength: float = 10.0, decay: float = 1.0, mode: str = "separate", samples: int = 0,
        labels: str = "exact", batch: int = 10) -> Part:
    """Elastic weight consolidation: parameters that mattered for earlier tasks resist change.

    Adds strength / 2 * sum over parameters of F (parameter - anchor)^2, with F the diagonal Fisher information.

    Args:
        strength: lambda; 0 is fine-tuning.
        decay: gamma of the online mode, in [0, 1]: what earlier tasks' F keeps of its weight at every task.
        mode: 'separate', one penalty a task; 'online', one running F around the latest parameters.
        samples: examples of a task whose gradients make its F, drawn at random; 0 for all.
        labels: 'exact' averages over the network's own answers, 'sampled' draws one of them for each example,
            'empirical' takes the true label; 'batched' squares the mean gradient of mini-batches at the true labels.
        batch: size of these mini-batches, 1 or more; with other labels no batch size changes F.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796 (separate); Schwarz et al. 2018, arXiv:1805.06370 (online).
        Where losses are quadratic 'online' with decay 1 finds the minimum of all tasks together, 'separate' that of two
        alone, since later anchors have the earlier penalties in them (Huszar 2018, arXiv:1712.03847). The separate
        penalties are quadratics, whose sum is one quadratic around their F-weighted mean plus a constant: that is what
        is stored, so a step costs the same at task 100 as at task 2, with the same gradient. 'batched' is the F of
        Avalanche 0.6.0, smaller by about the batch size, whose penalty lacks the 1/2.
    """
    at_least(0, strength=strength, decay=decay, samples=samples)
    at_least(1, batch=batch)
    at_most(1, decay=decay)
    one_of("mode", mode, ("separate", "online"))
    one_of("labels", labels, LABELS)

    def consolidate(view: View) -> State:
        rows, weight, u = view.batch.rows, view.batch.weight, view.u
        if 0 < samples < len(rows):
            chosen = torch.where(rows >= 0, u, -1.0).topk(samples).indices
            # The chosen ones have the largest numbers; their lower bits are as good as new.
            rows, u = rows.gather(0, chosen), (u.gather(0, chosen) * 2**20).frac()
            weight = mean_weights(rows, weight.dtype)
        new = fisher(view.net, view.params, view.pool, rows, weight, labels, batch if labels == "batched" else 256, u)
        old, anchor = view.state["importance"], view.state["anchor"]
        if mode == "online":
            return {"importance": {k: decay * old[k] + new[k] for k in new}, "anchor": dict(view.params)}
        total = {k: old[k] + new[k] for k in new}
        # Where nothing matters yet any anchor will do; the clamp only keeps 0 / 0 away.
        share = {k: new[k] / total[k].clamp(min=torch.finfo(new[k].dtype).tiny) for k in new}
        return {"importance": total, "anchor": {k: torch.lerp(anchor[k], view.params[k], share[k]) for k in new}}

    return Part(init=_begin, loss=lambda view: _stay(view, strength), task=consolidate, boundaries=True,
                classes=labels in ("sampled", "empirical"))


def si(strength: float = 1.0, damping: float = 0.1) -> Part:
    """Synaptic intelligence: parameters whose moves lowered the loss of earlier tasks resist change.

    Adds strength * sum over parameters of Omega (parameter - anchor)^2. Omega sums over tasks
    max(omega, 0) / (D^2 + damping), with omega the sum over a task's steps of -gradient * move, and D the move over
    the whole task.

    Args:
        strength: c; 0 is fine-tuning.
        damping: xi, above 0, keeps parameters that hardly moved from mattering without bound.

    Source: Zenke et al. 2017, arXiv:1703.04200. Every task's omega is kept from falling below 0, where its authors'
        code keeps the sum. The gradient is that of all that is minimised (in a sum, with the replayed losses and the
        other parts' pulls) but for si's own penalty.
    """
    at_least(0, strength=strength)
    above(0, damping=damping)

    def begin(view: View) -> State:
        return _begin(view) | {"path": _zeros(view.params), "previous": dict(view.params)}

    def follow(view: View) -> State:
        path = view.state["path"]
        gain = _gain(view, 2 * strength)
        return view.state | {"path": path | {k: path[k] + g for k, g in gain.items()}, "previous": dict(view.params)}

    def consolidate(view: View) -> State:
        state, params = view.state, view.params
        new = {k: state["path"][k].relu() / ((p - state["anchor"][k]).square() + damping) for k, p in params.items()}
        return {"importance": {k: state["importance"][k] + v for k, v in new.items()}, "anchor": dict(params),
                "path": _zeros(params), "previous": dict(params)}

    return Part(init=begin, loss=lambda view: _stay(view, 2 * strength), step=follow, task=consolidate,
                boundaries=True)


def mas(strength: float = 1.0) -> Part:
    """Memory aware synapses: parameters that the answers on earlier tasks are sensitive to resist change.

    Adds strength * sum over parameters of Omega (parameter - anchor)^2. Omega sums over tasks the mean over a task's
    examples of |d ||F(x)||^2 / d parameter|, with F(x) the scores before any softmax; no label is used.

    Args:
        strength: lambda; 0 is fine-tuning.

    Source: Aljundi et al. 2018, arXiv:1711.09601, the global version. Task-incremental: F(x) are the task's own units.
        The absolute value is taken example by example, as in the paper, not of a batch's mean gradient.
    """
    at_least(0, strength=strength)

    def consolidate(view: View) -> State:
        new = sensitivity(view.net, view.params, view.pool, view.batch.rows, view.batch.weight)
        return {"importance": {k: view.state["importance"][k] + v for k, v in new.items()}, "anchor": dict(view.params)}

    return Part(init=_begin, loss=lambda view: _stay(view, 2 * strength), task=consolidate, boundaries=True)


def _unit_range(values: Params) -> Params:
    """All entries of all parameters moved and scaled together so that they span [0, 1]; equal entries become 0."""
    low = torch.stack([v.min() for v in values.values()]).min()
    span = torch.stack([v.max() for v in values.values()]).max() - low
    return {k: (v - low) / torch.where(span > 0, span, 1.0) for k, v in values.items()}


def rwalk(strength: float = 1.0, share: float = 0.1, every: int = 10, damping: float = 0.001) -> Part:
    """Riemannian walk: importance is a moving Fisher information plus how well each parameter's path paid.

    Adds strength * sum over parameters of (F + s) (parameter - anchor)^2. F is a moving average over all steps of the
    batch's empirical Fisher information. s sums over windows of `every` steps max(gain, 0) / (F D^2 / 2 + damping),
    with gain the window's sum of -gradient * move and D its whole move; after every later task it is averaged half and
    half with what it was. F and s are each shifted and scaled to span [0, 1] over all parameters together.

    Args:
        strength: lambda; 0 is fine-tuning.
        share: alpha in [0, 1], the weight of a batch in the moving average; the first batch is taken whole.
        every: steps of a window, 1 or more; a task's last window may be shorter.
        damping: epsilon, above 0.

    Source: Chaudhry et al. 2018, arXiv:1801.10112, its regularisation without its samples: add `er` for those. F moves
        at every step, not once a window by 0.9, and squares the gradients of single examples, so that `damping` suits
        every batch size; scaling and averaging are those of its authors' code. The gradient leaves out rwalk's own
        penalty.
    """
    at_least(0, strength=strength, share=share)
    at_most(1, share=share)
    at_least(1, every=every)
    above(0, damping=damping)

    def begin(view: View) -> State:
        params = view.params
        return _begin(view) | {
            "previous": dict(params), "corner": dict(params), "fisher": _zeros(params), "gain": _zeros(params),
            "path": _zeros(params), "score": _zeros(params), "steps": torch.tensor(0), "tasks": torch.tensor(0)}

    def paid(state: State, params: Params) -> Params:
        """The paths with the window that ends here."""
        return {k: state["path"][k] + state["gain"][k].relu() / (
            state["fisher"][k] * (p - state["corner"][k]).square() / 2 + damping) for k, p in params.items()}

    def follow(view: View) -> State:
        old, params, batch = view.state, view.params, view.batch
        new = fisher(view.net, params, view.pool, batch.rows, batch.weight, "empirical")
        first = old["steps"] + old["tasks"] == 0
        gain = _gain(view, 2 * strength)
        state = old | {"fisher": {k: torch.where(first, new[k], f + share * (new[k] - f))
                                  for k, f in old["fisher"].items()},
                       "gain": old["gain"] | {k: old["gain"][k] + g for k, g in gain.items()},
                       "previous": dict(params), "steps": old["steps"] + 1}
        turn = state["steps"] % every == 0
        at_turn = {"path": paid(state, params), "gain": _zeros(params), "corner": params}
        return state | {name: {k: torch.where(turn, v, state[name][k]) for k, v in values.items()}
                        for name, values in at_turn.items()}

    def consolidate(view: View) -> State:
        state, params = view.state, view.params
        path = paid(state, params)
        mix = torch.where(state["tasks"] > 0, 0.5, 1.0)
        score = {k: torch.lerp(s, path[k], mix.to(s.dtype)) for k, s in state["score"].items()}
        scaled, paths = _unit_range(state["fisher"]), _unit_range(score)
        return state | {
            "importance": {k: scaled[k] + paths[k] for k in params}, "anchor": dict(params), "previous": dict(params),
            "corner": dict(params), "gain": _zeros(params), "path": _zeros(params), "score": score,
            "steps": torch.zeros_like(state["steps"]), "tasks": state["tasks"] + 1}

    return Part(init=begin, loss=lambda view: _stay(view, 2 * strength), step=follow, task=consolidate,
                boundaries=True, classes=True)
