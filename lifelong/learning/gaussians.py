"""GeMCL's Gaussian classifiers: one Gaussian per class, with an inverse-gamma prior on its variances."""

from __future__ import annotations

import torch
from torch import Tensor

HEADS = ("predictive", "map")
ALPHA, BETA = 100.0, 1000.0  # the inverse-gamma prior before it is fitted
FITTED = 200_000  # a prior is fitted to at most this many variances


def scored(head: str, z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor,
           dtype: torch.dtype) -> Tensor:
    """Scores [B, C] of one of the `HEADS`: of `student` for 'predictive', of `gaussian` for 'map'."""
    if head == "map":
        return gaussian(z, m, spread, n, alpha, beta)
    return student(z, m, spread, n, alpha, beta, dtype)


def gaussian(z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """Scores [B, C] of GeMCL's 'map' head: log likelihoods under the most probable variances, up to a constant.

    Args:
        z: features [B, F].
        m: class means [C, F].
        spread: sums of squared deviations from the class means [C, F].
        n: examples of each class [C, 1].
        alpha: shape of the inverse-gamma prior of the variances.
        beta: scale of the prior.
    """
    v = (beta + spread / 2) / (alpha + n / 2 - 1)
    return z @ (m / v).mT - z.square() @ (0.5 / v).mT - (m.square() / v + v.log()).sum(-1) / 2


def student(z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor,
            dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores [B, C] of GeMCL's 'predictive' head: log predictive densities, up to a constant.

    Args:
        z, m, spread, n, alpha, beta: as in `gaussian`.
        dtype: type of the B * C * F differences z - m.
    """
    a, b = alpha + n / 2, 2 * (beta + spread / 2) * (1 + 1 / n)
    weight = a.squeeze(-1) + 0.5
    level = torch.lgamma(weight) - torch.lgamma(a.squeeze(-1))
    constant = level * z.shape[-1] - b.log().sum(-1) / 2
    root, z, one = b.rsqrt(), z.to(dtype).unsqueeze(-2), torch.ones((), dtype=dtype, device=z.device)
    classes = max(1, 2**21 // z.numel())  # at a time, so that their differences fit into a processor's cache
    logs = []
    for part, r in zip((-m * root).to(dtype).split(classes), root.to(dtype).split(classes), strict=True):
        ratio = torch.addcmul(part, z, r)
        ratio = torch.addcmul(one, ratio, ratio)
        if ratio.shape[-1] % 4 == 0:  # the B * C * F logarithms take longest, so one is taken for four features
            a1, a2, a3, a4 = ratio.clamp(max=1e9).chunk(4, -1)
            ratio = a1 * a2 * (a3 * a4)
        logs.append(ratio.log().sum(-1))
    return constant - weight * torch.cat(logs, -1)


def fitted(spread: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The inverse-gamma prior, alpha >= 1 and beta, that maximises the marginal likelihood of sums of squares.

    With h = (n - 1) / 2, the likelihood of one sum s is proportional to
    Gamma(alpha + h) / Gamma(alpha) * beta^alpha / (beta + s / 2)^(alpha + h). Features that are 0 in a whole class
    have s = 0, which has a maximum only at beta = 0; they are left out.

    Args:
        spread: sums of squared deviations from the mean, one per variance, of any shape.
        n: number of examples in each sum.
    """
    s, half = spread.double().flatten() / 2, (n - 1) / 2
    s = s[s > 1e-8 * s.mean()]
    s = s[::-(-len(s) // FITTED)]
    unit = s.mean() / half  # the search is in units of the mean variance
    s = s / unit
    free = torch.zeros(2, dtype=s.dtype, device=s.device, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=50, line_search_fn="strong_wolfe")

    def prior() -> tuple[Tensor, Tensor]:
        return 1 + free[0].exp(), free[1].exp()

    def negative_log_likelihood() -> Tensor:
        search.zero_grad()
        alpha, beta = prior()
        loss = (torch.lgamma(alpha) - torch.lgamma(alpha + half) - alpha * beta.log()
                + (alpha + half) * (beta + s).log().mean())
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(negative_log_likelihood)
    alpha, beta = prior()
    return alpha.detach(), beta.detach() * unit
