"""Learners without gradients: statistics of each class on the network's features."""

import torch
from torch import Tensor

from lifelong.learner import Batch, Learner, State
from lifelong.models import Net, Params
from lifelong.randomness import generator
from lifelong.registry import above, at_most
from lifelong.stream import Pool


def _features(net: Net, params: Params, x: Tensor) -> Tensor:
    if net.features is None:
        raise ValueError("this model does not say what its features are: give it a method features(x)")
    return net.features(params, x).double()


def _statistics(net: Net, seed: int, pool: Pool) -> tuple[State, int]:
    params = {k: p.to(pool.dtype) for k, p in net.init(generator(seed, "init")).items()}
    x, _ = pool.fetch(torch.zeros(1, dtype=torch.int64, device=pool.y.device))
    width = _features(net, {k: p.to(x.device) for k, p in params.items()}, x).shape[-1]
    count = torch.zeros(pool.n_classes, dtype=torch.float64)
    return {"params": params, "count": count, "sum": torch.zeros(pool.n_classes, width, dtype=torch.float64)}, width


def _add(net: Net, state: State, pool: Pool, batch: Batch) -> tuple[State, Tensor]:
    x, y = pool.fetch(batch.rows)
    z = _features(net, state["params"], x) * (batch.rows >= 0).unsqueeze(-1)
    unit = torch.nn.functional.one_hot(y, pool.n_classes).double() * (batch.rows >= 0).unsqueeze(-1)
    return state | {"count": state["count"] + unit.sum(0), "sum": state["sum"] + unit.mT @ z}, z


def _means(state: State) -> Tensor:
    return state["sum"] / state["count"].clamp(min=1).unsqueeze(-1)


def ncm(net: Net) -> Learner:
    """Nearest class mean: answers the class whose mean feature is nearest; the network itself is never trained.

    Source: Mensink et al. 2013, "Distance-based image classification"; as a continual learner in Rebuffi et al. 2017,
        arXiv:1611.07725, there with exemplars, here with exact running means.
    """

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        return _add(net, state, pool, batch)[0], {}

    def predict(state: State, pool: Pool, x: Tensor) -> Tensor:
        z = _features(net, state["params"], x)
        distance = torch.cdist(z, _means(state), compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where(state["count"] > 0, -distance, -torch.inf)

    return Learner(lambda seed, pool: _statistics(net, seed, pool)[0], observe, predict)


def slda(net: Net, shrinkage: float = 1e-4) -> Learner:
    """Streaming linear discriminant analysis: class means under one covariance, both learned in one pass.

    Scores are the discriminants m_c' P z - m_c' P m_c / 2 with P the inverse of (1 - shrinkage) S + shrinkage I.

    Args:
        net: whose features are used; never trained.
        shrinkage: epsilon in (0, 1]; 1 ignores the covariance and is the nearest class mean.

    Source: Hayes & Kanan 2020, arXiv:1909.01520. S is the exact pooled within-class covariance, from sums of z and
        z z', so it does not depend on the order of examples as their running estimate does.
    """
    above(0, shrinkage=shrinkage)
    at_most(1, shrinkage=shrinkage)

    def init(seed: int, pool: Pool) -> State:
        state, width = _statistics(net, seed, pool)
        return state | {"outer": torch.zeros(width, width, dtype=torch.float64)}

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        new, z = _add(net, state, pool, batch)
        return new | {"outer": state["outer"] + z.mT @ z}, {}

    def predict(state: State, pool: Pool, x: Tensor) -> Tensor:
        means, count = _means(state), state["count"]
        within = (state["outer"] - means.mT @ (means * count.unsqueeze(-1))) / count.sum().clamp(min=1)
        eye = torch.eye(len(within), dtype=within.dtype, device=within.device)
        weight = torch.linalg.solve((1 - shrinkage) * within + shrinkage * eye, means.mT)
        scores = _features(net, state["params"], x) @ weight - (means.mT * weight).sum(0) / 2
        return torch.where(count > 0, scores, -torch.inf)

    return Learner(init, observe, predict)
