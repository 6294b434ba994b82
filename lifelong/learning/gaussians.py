"""Gaussians of classes whose variances are known only from a few examples and a prior: their scores, and that prior."""

from __future__ import annotations

import torch
from torch import Tensor

HEADS = ("predictive", "map")
ALPHA, BETA = 100.0, 1000.0  # of the inverse-gamma prior, where nothing was fitted
FITTED = 200_000  # variances, at most, that a prior is fitted to


def scored(head: str, z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor,
           dtype: torch.dtype) -> Tensor:
    """Scores [B, C] of one of the `HEADS`: `student`, or of 'map' `gaussian`, which see."""
    if head == "map":
        return gaussian(z, m, spread, n, alpha, beta)
    return student(z, m, spread, n, alpha, beta, dtype)


def gaussian(z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """Scores [B, C] of GeMCL's 'map' head: z [B, F]; means and sums of squares about them [C, F]; counts n [C, 1]."""
    v = (beta + spread / 2) / (alpha + n / 2 - 1)
    return z @ (m / v).mT - z.square() @ (0.5 / v).mT - (m.square() / v + v.log()).sum(-1) / 2


def student(z: Tensor, m: Tensor, spread: Tensor, n: Tensor, alpha: float | Tensor, beta: float | Tensor,
            dtype: torch.dtype = torch.float64) -> Tensor:
    """Scores [B, C] of GeMCL's 'predictive' head, without what is the same for all classes; arguments as `gaussian`'s.

    Args:
        dtype: of the differences z - m, of which there are B C F.
    """
    a, b = alpha + n / 2, 2 * (beta + spread / 2) * (1 + 1 / n)
    weight = a.squeeze(-1) + 0.5
    level = torch.lgamma(weight) - torch.lgamma(a.squeeze(-1))
    constant = level * z.shape[-1] - b.log().sum(-1) / 2
    root, z, one = b.rsqrt(), z.to(dtype).unsqueeze(-2), torch.ones((), dtype=dtype, device=z.device)
    at_once = max(1, 2**21 // z.numel())  # classes whose differences a processor's cache holds
    far = []
    for part, r in zip((-m * root).to(dtype).split(at_once), root.to(dtype).split(at_once), strict=True):
        ratio = torch.addcmul(part, z, r)
        ratio = torch.addcmul(one, ratio, ratio)
        if ratio.shape[-1] % 4 == 0:  # one logarithm for four features: of B C F, they take longest
            a1, a2, a3, a4 = ratio.clamp(max=1e9).chunk(4, -1)
            ratio = a1 * a2 * (a3 * a4)
        far.append(ratio.log().sum(-1))
    return constant - weight * torch.cat(far, -1)


def fitted(spread: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The alpha, 1 or more, and beta of greatest marginal likelihood, of variances that are inverse-gamma, where of `n`
    numbers under each the sums of squares about their mean are `spread`.

    That of one sum s is, but for what neither changes, with h = (n - 1) / 2,
    Gamma(alpha + h) / Gamma(alpha) * beta^alpha / (beta + s / 2)^(alpha + h). Features that are off for a whole class
    have s = 0, which no prior but beta = 0 explains: they are left out.
    """
    s, half = spread.double().flatten() / 2, (n - 1) / 2
    s = s[s > 1e-8 * s.mean()]
    s = s[::-(-len(s) // FITTED)]
    size = s.mean() / half  # beta is sought in units of the mean variance
    s = s / size
    free = torch.zeros(2, dtype=s.dtype, device=s.device, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=50, line_search_fn="strong_wolfe")

    def prior() -> tuple[Tensor, Tensor]:
        return 1 + free[0].exp(), free[1].exp()

    def unlikely() -> Tensor:
        search.zero_grad()
        alpha, beta = prior()
        loss = (torch.lgamma(alpha) - torch.lgamma(alpha + half) - alpha * beta.log()
                + (alpha + half) * (beta + s).log().mean())
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(unlikely)
    alpha, beta = prior()
    return alpha.detach(), beta.detach() * size
