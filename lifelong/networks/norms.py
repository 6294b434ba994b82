"""Normalisation of images inside a network, and the statistics that batch normalisation keeps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]

NORMS = ("group", "batch", "instance", "none")
MOMENTUM = 0.1  # share of the way that running statistics go towards a batch's
_EPS = 1e-5
_lifted = getattr(torch._C._functorch, "maybe_current_level", lambda: 0)  # None outside of vmap and grad


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
        params, name: of `norm_layer`.
        x: the images.
        how: 'group' (each image over all channels), 'instance' (each channel of each image), 'batch' or 'none'.
        own: for 'batch': None uses the statistics in `params`; a dict uses the batch's own, and takes them (means and
            variances, without gradient) and, as `count`, of how many numbers they are.
        real: [B] bool, the images that the batch's own statistics are of; None: all.
    """
    if how == "none":
        return x
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    if how != "batch":
        return F.group_norm(x, 1 if how == "group" else len(weight), weight, bias, _EPS)
    if own is None:
        mean, var = (params[f"{name}.{k}"].detach() for k in ("mean", "var"))  # torch has no derivative by these
        if x.dtype != mean.dtype and _lifted() is not None:  # nor under vmap precisions that differ
            return F.batch_norm(x.to(mean.dtype), mean, var, weight, bias, eps=_EPS).to(x.dtype)
        return F.batch_norm(x, mean, var, weight, bias, eps=_EPS)
    own[f"{name}.count"] = _count(x, real)
    if real is not None:
        return _of_some(weight, bias, name, x, own, real)
    if _lifted() is not None:
        # Its fused form has wrong second derivatives under vmap (torch 2.14).
        mean = x.mean((0, 2, 3))
        x = x - mean.view(-1, 1, 1)
        var = x.square().mean((0, 2, 3))
        own[f"{name}.mean"], own[f"{name}.var"] = mean.detach(), var.detach()
        return x * (weight * (var + _EPS).rsqrt()).view(-1, 1, 1) + bias.view(-1, 1, 1)
    x, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, _EPS)
    own[f"{name}.mean"], own[f"{name}.var"] = mean.detach(), scale.detach()**-2 - _EPS
    return x


def _count(x: Tensor, real: Tensor | None) -> Tensor:
    area = x.shape[2] * x.shape[3]
    return x.new_tensor(len(x) * area, dtype=torch.float64) if real is None else area * real.sum().double()


def _of_some(weight: Tensor, bias: Tensor, name: str, x: Tensor, own: Params, real: Tensor) -> Tensor:
    given = x.dtype
    x = x.to(weight.dtype)
    share = (real.to(x.dtype) / real.sum().clamp(min=1)).unsqueeze(-1)
    # By image first: a weight on every pixel would be one more pass over all of them.
    mean = (x.mean((2, 3)) * share).sum(0)
    x = x - mean.view(-1, 1, 1)
    var = (x.square().mean((2, 3)) * share).sum(0)
    own[f"{name}.mean"], own[f"{name}.var"] = mean.detach(), var.detach()
    return (x * (weight * (var + _EPS).rsqrt()).view(-1, 1, 1) + bias.view(-1, 1, 1)).to(given)


def moved(params: Params, own: Params) -> Params:
    """The running statistics in `params` after a batch whose statistics are `own`, as torch.nn.BatchNorm2d has them.

    They go the share `MOMENTUM` of the way to the batch's mean and unbiased variance; where no image counted, nowhere.
    """
    after: Params = {}
    for key, count in own.items():
        if not key.endswith(".count"):
            continue
        name = key.removesuffix(".count")
        fair = {"mean": own[f"{name}.mean"], "var": own[f"{name}.var"] * (count / (count - 1).clamp(min=1))}
        for what, new in fair.items():
            old = params[f"{name}.{what}"].detach()
            went = old + MOMENTUM * (new.to(old.dtype) - old)
            after[f"{name}.{what}"] = torch.where(count > 0, went, old)
    return after
