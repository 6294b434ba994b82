"""Normalisation of images inside a network, and the statistics that batch normalisation keeps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.vmap import lifted

Params = dict[str, Tensor]

NORMS = ("group", "batch", "instance", "none")
MOMENTUM = 0.1  # weight of a batch in the running statistics
_EPS = 1e-5


def norm_layer(params: Params, name: str, width: int, how: str) -> None:
    """Adds the parameters of a normalisation of `width` channels: scale, shift, and for 'batch' its statistics."""
    if how == "none":
        return
    params[f"{name}.weight"], params[f"{name}.bias"] = torch.ones(width), torch.zeros(width)
    if how == "batch":
        params[f"{name}.mean"], params[f"{name}.var"] = torch.zeros(width), torch.ones(width)


def normalised(params: Params, name: str, x: Tensor, how: str, own: Params | None = None,
               real: Tensor | None = None) -> Tensor:
    """Images [B, C, H, W] normalised, scaled and shifted.

    Args:
        params, name: as in `norm_layer`.
        x: the images.
        how: 'group' (each image over all channels), 'instance' (each channel of each image), 'batch' or 'none'.
        own: for 'batch': None uses the statistics in `params`; a dict uses the batch's own and receives them (means and
            variances, without gradient) and, as `count`, the number of values per channel.
        real: [B] bool, the images from which the batch's own statistics are computed; None for all.
    """
    if how == "none":
        return x
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    if how != "batch":
        return F.group_norm(x, 1 if how == "group" else len(weight), weight, bias, _EPS)
    if own is None:
        return by_running(x, params[f"{name}.mean"], params[f"{name}.var"], weight, bias)
    x, mean, var, own[f"{name}.count"] = by_batch(x, weight, bias, real)
    own[f"{name}.mean"], own[f"{name}.var"] = mean, var
    return x


def by_batch(x: Tensor, weight: Tensor, bias: Tensor, real: Tensor | None = None,
             eps: float = _EPS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images normalised by the batch's own statistics, then scaled and shifted; and these statistics.

    Args:
        x: images [B, C, H, W].
        weight, bias: [C], scale and shift.
        real: [B] bool, the images from which the statistics are computed; None for all.
        eps: added to the variance.

    Returns:
        The images; the mean and the variance [C], without gradient; and the number of values per channel, 0-d.
    """
    count = _count(x, real)
    if real is not None:
        return *_of_some(weight, bias, x, real, eps), count
    if lifted():
        # torch's fused form has wrong second derivatives under vmap (torch 2.14).
        mean = x.mean((0, 2, 3))
        x = x - mean.view(-1, 1, 1)
        var = x.square().mean((0, 2, 3))
        x = x * (weight * (var + eps).rsqrt()).view(-1, 1, 1) + bias.view(-1, 1, 1)
        return x, mean.detach(), var.detach(), count
    x, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    return x, mean.detach(), scale.detach()**-2 - eps, count


def _count(x: Tensor, real: Tensor | None) -> Tensor:
    area = x.shape[2] * x.shape[3]
    return x.new_tensor(len(x) * area, dtype=torch.float64) if real is None else area * real.sum().double()


def _of_some(weight: Tensor, bias: Tensor, x: Tensor, real: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    given = x.dtype
    x = x.to(weight.dtype)
    share = (real.to(x.dtype) / real.sum().clamp(min=1)).unsqueeze(-1)
    # The mean of each image first, because weighting every pixel would be another pass over all of them.
    mean = (x.mean((2, 3)) * share).sum(0)
    x = x - mean.view(-1, 1, 1)
    var = (x.square().mean((2, 3)) * share).sum(0)
    x = (x * (weight * (var + eps).rsqrt()).view(-1, 1, 1) + bias.view(-1, 1, 1)).to(given)
    return x, mean.detach(), var.detach()


def by_running(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None,
               eps: float = _EPS) -> Tensor:
    """A batch [B, C, ...] normalised by running statistics [C], which get no gradient, then scaled and shifted."""
    mean, var = mean.detach(), var.detach()  # torch has no derivative with respect to these
    if x.dtype != mean.dtype and lifted():  # nor mixed precisions under vmap
        return F.batch_norm(x.to(mean.dtype), mean, var, weight, bias, eps=eps).to(x.dtype)
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def followed(mean: Tensor, var: Tensor, own_mean: Tensor, own_var: Tensor, count: Tensor,
             momentum: float = MOMENTUM) -> tuple[Tensor, Tensor]:
    """Running statistics after a batch, as in torch.nn.BatchNorm2d, without gradient.

    They are moving averages of the batches' mean and unbiased variance; a batch of padding only does not change them.

    Args:
        mean, var: running statistics before the batch.
        own_mean, own_var, count: statistics of the batch, as returned by `by_batch`.
        momentum: weight of the batch, in [0, 1]; 0 leaves the running statistics unchanged.
    """
    def step(old: Tensor, new: Tensor) -> Tensor:
        old = old.detach()
        return torch.where(count > 0, old + momentum * (new.to(old.dtype) - old), old)

    return step(mean, own_mean), step(var, own_var * (count / (count - 1).clamp(min=1)))


def moved(params: Params, own: Params) -> Params:
    """The running statistics in `params` after a batch with the statistics `own`, see `normalised`."""
    after: Params = {}
    for name in [key.removesuffix(".count") for key in own if key.endswith(".count")]:
        mean, var = f"{name}.mean", f"{name}.var"
        after[mean], after[var] = followed(params[mean], params[var], own[mean], own[var], own[f"{name}.count"])
    return after
