"""Learners without gradients: classifiers by statistics of each class's features."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.gaussians import ALPHA, BETA, HEADS, scored
from lifelong.learning.learner import Batch, Learner, State
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.spec.bounds import above, at_least, at_most, one_of


def _features(net: Net, params: Params, x: Tensor) -> Tensor:
    if net.features is None:
        raise ValueError("this model does not define its features; give it a method features(x)")
    return net.features(params, x).double()


def _statistics(net: Net, seed: int, pool: Pool) -> tuple[State, int]:
    params = {k: p.to(pool.dtype) for k, p in net.init(generator(seed, "init")).items()}
    x, _ = pool.fetch(torch.zeros(1, dtype=torch.int64, device=pool.y.device))
    width = _features(net, {k: p.to(x.device) for k, p in params.items()}, x).shape[-1]
    count = torch.zeros(pool.n_classes, dtype=torch.float64)
    return {"params": params, "count": count, "sum": torch.zeros(pool.n_classes, width, dtype=torch.float64)}, width


def _units(pool: Pool, batch: Batch) -> Tensor:
    """One-hot classes of a batch, [B, C]; all 0 at padding."""
    _, y = pool.fetch(batch.rows)
    return F.one_hot(y, pool.n_classes).double() * (batch.rows >= 0).unsqueeze(-1)


def _add(seen: Callable[[State, Tensor], Tensor], state: State, pool: Pool, batch: Batch) -> tuple[State, Tensor]:
    """The state with a batch's counts and feature sums added, and the batch's features [B, F], 0 at padding."""
    z = seen(state, pool.fetch(batch.rows)[0]) * (batch.rows >= 0).unsqueeze(-1)
    unit = _units(pool, batch)
    return state | {"count": state["count"] + unit.sum(0), "sum": state["sum"] + unit.mT @ z}, z


def _means(state: State) -> Tensor:
    return state["sum"] / state["count"].clamp(min=1).unsqueeze(-1)


def _shrunk(state: State, shrinkage: float, target: float | Tensor) -> Tensor:
    """(1 - shrinkage) S + shrinkage * target * I, with S the pooled within-class covariance."""
    means, count = _means(state), state["count"]
    within = (state["outer"] - means.mT @ (means * count.unsqueeze(-1))) / count.sum().clamp(min=1)
    eye = torch.eye(within.shape[-1], dtype=within.dtype, device=within.device)
    return (1 - shrinkage) * within + shrinkage * target * eye


def _discriminants(state: State, z: Tensor, covariance: Tensor) -> Tensor:
    """m_c' P z - m_c' P m_c / 2 with P the inverse of `covariance`: largest for the nearest Mahalanobis distance."""
    means = _means(state)
    weight = torch.linalg.solve(covariance, means.mT)
    scores = z @ weight - (means.mT * weight).sum(0) / 2
    return torch.where(state["count"] > 0, scores, -torch.inf)


def ncm(net: Net, distance: str = "euclidean", shrinkage: float = 0.1) -> Learner:
    """Nearest class mean: predicts the class whose mean feature is nearest; the network is never trained.

    Args:
        net: the network that computes the features; it is never trained.
        distance: 'euclidean'; 'cosine', with each feature vector scaled to length 1; or 'mahalanobis', with the
            covariance C = (1 - shrinkage) S + shrinkage v I shared by all classes, where S is the pooled within-class
            covariance and v its mean variance: directions that vary little within classes count more.
        shrinkage: for 'mahalanobis', in (0, 1]; 1 is the same as 'euclidean'.

    Source: Mensink et al. 2013, "Distance-based image classification"; as a continual learner in Rebuffi et al. 2017,
        arXiv:1611.07725, which computes the means from exemplars. Here they are exact running means.
    """
    one_of("distance", distance, ("euclidean", "cosine", "mahalanobis"))
    above(0, shrinkage=shrinkage)
    at_most(1, shrinkage=shrinkage)
    shared = distance == "mahalanobis"

    def seen(state: State, x: Tensor) -> Tensor:
        z = _features(net, state["params"], x)
        return F.normalize(z, dim=-1) if distance == "cosine" else z

    def init(seed: int, pool: Pool) -> State:
        state, width = _statistics(net, seed, pool)
        return state | ({"outer": torch.zeros(width, width, dtype=torch.float64)} if shared else {})

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        new, z = _add(seen, state, pool, batch)
        return (new | {"outer": state["outer"] + z.mT @ z} if shared else new), {}

    def predict(state: State, pool: Pool, x: Tensor) -> Tensor:
        z = seen(state, x)
        if shared:
            variance = _shrunk(state, 0.0, 0.0).diagonal(dim1=-2, dim2=-1).mean()
            # Before a class has two examples the variance is 0; all directions then have equal weight.
            variance = torch.where(variance > 0, variance, 1.0)
            return _discriminants(state, z, _shrunk(state, shrinkage, variance))
        if distance == "cosine":
            near = z @ F.normalize(_means(state), dim=-1).mT
        else:
            near = -torch.cdist(z, _means(state), compute_mode="donot_use_mm_for_euclid_dist")
        return torch.where(state["count"] > 0, near, -torch.inf)

    return Learner(init, observe, predict, classes=True)


def slda(net: Net, shrinkage: float = 1e-4) -> Learner:
    """Streaming linear discriminant analysis (SLDA): class means and one shared covariance, learned in one pass.

    Scores are the discriminants m_c' P z - m_c' P m_c / 2 with P the inverse of (1 - shrinkage) S + shrinkage I.

    Args:
        net: the network that computes the features; it is never trained.
        shrinkage: epsilon in (0, 1]; 1 ignores the covariance, which gives the nearest class mean.

    Source: Hayes & Kanan 2020, arXiv:1909.01520. S is the exact pooled within-class covariance, computed from sums of
        z and z z'; unlike the paper's running estimate it does not depend on the order of the examples.
    """
    above(0, shrinkage=shrinkage)
    at_most(1, shrinkage=shrinkage)

    def seen(state: State, x: Tensor) -> Tensor:
        return _features(net, state["params"], x)

    def init(seed: int, pool: Pool) -> State:
        state, width = _statistics(net, seed, pool)
        return state | {"outer": torch.zeros(width, width, dtype=torch.float64)}

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        new, z = _add(seen, state, pool, batch)
        return new | {"outer": state["outer"] + z.mT @ z}, {}

    def predict(state: State, pool: Pool, x: Tensor) -> Tensor:
        return _discriminants(state, seen(state, x), _shrunk(state, shrinkage, 1.0))

    return Learner(init, observe, predict, classes=True)


def gemcl(net: Net, head: str = "predictive", alpha: float | None = None, beta: float | None = None,
          learned: Mapping[str, Tensor] | None = None) -> Learner:
    """GeMCL: a Gaussian for every class and feature, whose variances share one inverse-gamma prior.

    The prior of a variance is inverse-gamma with shape alpha and scale beta; the prior of a mean is flat. After n
    examples of a class with mean m and sum of squared deviations SS in a feature, alpha' = alpha + n / 2 and
    beta' = beta + SS / 2. The score of a class is the sum over features of

        'predictive': the log density of Student's t at z, with 2 alpha' degrees of freedom, location m and squared
            scale (beta' / alpha') (1 + 1 / n): the predictive distribution of the class's next example;
        'map': -((z - m)^2 / v + log v) / 2 with v = beta' / (alpha' - 1).

    The state is n, the sum of z and the sum of z^2, so one pass in any order suffices.

    Args:
        net: the network that computes the features; it is never trained.
        head: 'predictive' or 'map'.
        alpha: above 0, and 1 or more for 'map'. None uses the value that the start learned, provided that the features
            are not transformed, or else 100.
        beta: above 0. None uses the value that the start learned, likewise, or else 1000.
        learned: the values that a start learned besides its network's parameters.

    Source: Banayeeanzade et al. 2021, "Generative vs. discriminative: rethinking the meta-continual learning", which
        calls the predictive head Bayesian.
    """
    one_of("head", head, HEADS)
    prior = learned or {}
    a = prior.get("prior.alpha", ALPHA) if alpha is None else alpha
    b = prior.get("prior.beta", BETA) if beta is None else beta
    above(0, alpha=a, beta=b)
    if head == "map":
        at_least(1, alpha=a)

    def seen(state: State, x: Tensor) -> Tensor:
        return _features(net, state["params"], x)

    def init(seed: int, pool: Pool) -> State:
        state, _ = _statistics(net, seed, pool)
        return state | {"square": torch.zeros_like(state["sum"])}

    def observe(state: State, pool: Pool, batch: Batch) -> tuple[State, dict[str, Tensor]]:
        new, z = _add(seen, state, pool, batch)
        return new | {"square": state["square"] + _units(pool, batch).mT @ z.square()}, {}

    def predict(state: State, pool: Pool, x: Tensor) -> Tensor:
        z, n = seen(state, x), state["count"].clamp(min=1).unsqueeze(-1)
        m = state["sum"] / n
        spread = (state["square"] - n * m.square()).clamp(min=0)
        scores = scored(head, z, m, spread, n, a, b, pool.dtype)
        return torch.where(state["count"] > 0, scores, -torch.inf)

    return Learner(init, observe, predict, classes=True)
