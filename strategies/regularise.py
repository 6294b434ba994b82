"""Strategies that penalise moving parameters away from their values after earlier tasks."""

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
    """Decrease of the loss, without this part's penalty, by the last change of each parameter, to first order."""
    before = {k: view.state["previous"][k] for k in view.grads}
    own = penalty_gradient(Penalty(strength, view.state["anchor"], view.state["importance"]), before)
    return {k: (own[k] - g) * (view.params[k] - before[k]) for k, g in view.grads.items()}


def l2(strength: float = 1.0) -> Part:
    """L2 penalty: keeps all parameters, equally weighted, near the solution of the previous task.

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
    """Elastic weight consolidation (EWC): penalises changing parameters that are important for earlier tasks.

    Adds strength / 2 * sum over parameters of F (parameter - anchor)^2, with F the diagonal Fisher information.

    Args:
        strength: lambda; 0 is fine-tuning.
        decay: gamma of the online mode, in [0, 1]: the factor that multiplies the F of earlier tasks after every task.
        mode: 'separate', one penalty per task; 'online', one running F around the latest parameters.
        samples: examples of a task, drawn at random, from which its F is computed; 0 uses all.
        labels: 'exact' averages over the network's own predictions, 'sampled' draws one of them per example,
            'empirical' uses the true label; 'batched' squares the mean gradient of mini-batches at the true labels.
        batch: size of these mini-batches, 1 or more; it has no effect with other `labels`.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796 (separate); Schwarz et al. 2018, arXiv:1805.06370 (online).
        With quadratic losses, 'online' with decay 1 finds the joint minimum of all tasks; 'separate' finds it for two
        tasks only, because later anchors already include the earlier penalties (Huszar 2018, arXiv:1712.03847). The sum
        of the separate penalties is stored as one quadratic around their F-weighted mean, which has the same gradient,
        so the cost of a step does not grow with the number of tasks. 'batched' is the F of Avalanche 0.6.0, which is
        smaller by about a factor of the batch size; Avalanche's penalty lacks the 1/2.
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
            # The chosen examples have the largest numbers, but the lower bits of these are still uniform.
            rows, u = rows.gather(0, chosen), (u.gather(0, chosen) * 2**20).frac()
            weight = mean_weights(rows, weight.dtype)
        new = fisher(view.net, view.params, view.pool, rows, weight, labels, batch if labels == "batched" else 256, u)
        old, anchor = view.state["importance"], view.state["anchor"]
        if mode == "online":
            return {"importance": {k: decay * old[k] + new[k] for k in new}, "anchor": dict(view.params)}
        total = {k: old[k] + new[k] for k in new}
        # Where the importance is 0 the anchor has no effect; the clamp only avoids 0 / 0.
        share = {k: new[k] / total[k].clamp(min=torch.finfo(new[k].dtype).tiny) for k in new}
        return {"importance": total, "anchor": {k: torch.lerp(anchor[k], view.params[k], share[k]) for k in new}}

    return Part(init=_begin, loss=lambda view: _stay(view, strength), task=consolidate, boundaries=True,
                classes=labels in ("sampled", "empirical"))


def si(strength: float = 1.0, damping: float = 0.1) -> Part:
    """Synaptic intelligence (SI): penalises changing parameters whose updates lowered the loss of earlier tasks.

    Adds strength * sum over parameters of Omega (parameter - anchor)^2. Omega is the sum over tasks of
    max(omega, 0) / (D^2 + damping), where omega is the sum of -gradient * change over the steps of a task and D is the
    change over the whole task.

    Args:
        strength: c; 0 is fine-tuning.
        damping: xi, above 0; it bounds the importance of parameters that hardly changed.

    Source: Zenke et al. 2017, arXiv:1703.04200. The omega of every task is clipped at 0; the authors' code clips the
        sum over tasks. The gradient is that of the whole objective (in a sum, including the replayed losses and the
        penalties of other terms) without si's own penalty.
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
    """Memory aware synapses (MAS): penalises changing parameters to which the scores on earlier tasks are sensitive.

    Adds strength * sum over parameters of Omega (parameter - anchor)^2. Omega is the sum over tasks of the mean over a
    task's examples of |d ||F(x)||^2 / d parameter|, where F(x) are the scores before any softmax; labels are not used.

    Args:
        strength: lambda; 0 is fine-tuning.

    Source: Aljundi et al. 2018, arXiv:1711.09601, the global version. In task-incremental streams F(x) has the task's
        own units only. The absolute value is taken per example, as in the paper, not of a batch's mean gradient.
    """
    at_least(0, strength=strength)

    def consolidate(view: View) -> State:
        new = sensitivity(view.net, view.params, view.pool, view.batch.rows, view.batch.weight)
        return {"importance": {k: view.state["importance"][k] + v for k, v in new.items()}, "anchor": dict(view.params)}

    return Part(init=_begin, loss=lambda view: _stay(view, 2 * strength), task=consolidate, boundaries=True)


def _unit_range(values: Params) -> Params:
    """All entries of all parameters, shifted and scaled together to span [0, 1]; equal entries become 0."""
    low = torch.stack([v.min() for v in values.values()]).min()
    span = torch.stack([v.max() for v in values.values()]).max() - low
    return {k: (v - low) / torch.where(span > 0, span, 1.0) for k, v in values.items()}


def rwalk(strength: float = 1.0, share: float = 0.1, every: int = 10, damping: float = 0.001) -> Part:
    """Riemannian walk (RWalk): importance is a moving average of the Fisher information plus a path score.

    Adds strength * sum over parameters of (F + s) (parameter - anchor)^2. F is a moving average over all steps of the
    batch's empirical Fisher information. s is the sum over windows of `every` steps of
    max(gain, 0) / (F D^2 / 2 + damping), where gain is the window's sum of -gradient * change and D the change over the
    window; after every task but the first it is averaged with its previous value. F and s are each shifted and scaled
    to span [0, 1] over all parameters together.

    Args:
        strength: lambda; 0 is fine-tuning.
        share: alpha in [0, 1], the weight of a batch in the moving average; the first batch has weight 1.
        every: steps per window, 1 or more; the last window of a task may be shorter.
        damping: epsilon, above 0.

    Source: Chaudhry et al. 2018, arXiv:1801.10112, without its stored samples; add `er` for those. F is updated at
        every step, not once per window by 0.9, and squares the gradients of single examples, so that `damping` does not
        depend on the batch size. Scaling and averaging follow the authors' code. The gradient excludes rwalk's own
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
        """The path scores including the window that ends here."""
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
