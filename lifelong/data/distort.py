"""The same images seen otherwise: random affine and elastic distortions, and quarter turns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLE, SHEAR, ZOOM, SHIFT = math.radians(12), 0.25, 0.15, 0.16


def distorted(x: Tensor, g: torch.Generator, strength: float, elastic: float = 0.0) -> Tensor:
    """Images [B, C, H, W], each turned, sheared, scaled and shifted at random; what comes into sight repeats the edge.

    Uniformly up to `strength` times: 12 degrees either way, a shear of 0.25, a factor of exp(0.15) either way for
    each axis, a shift of 8 % of the side along each. All numbers are drawn on the CPU, so they are the same on every
    device.

    Args:
        x: the images.
        g: random numbers.
        strength: 0 leaves them alone.
        elastic: besides, the points of a grid of 5x5 are moved by up to this many half sides, and what is between them
            smoothly along.
    """
    n = len(x)

    def some(most: float, *shape: int) -> Tensor:
        return (torch.rand(n, *shape, generator=g) * 2 - 1) * most

    angle, shear = some(ANGLE * strength), some(SHEAR * strength)
    wide, high = (some(ZOOM * strength).exp() for _ in range(2))
    right, down = (some(SHIFT * strength) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos * wide, (cos * shear - sin) * high, right], 1),
            torch.stack([sin * wide, (sin * shear + cos) * high, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(x), list(x.shape), align_corners=False)
    if elastic:
        bumps = F.interpolate(some(elastic, 2, 5, 5).to(x), size=x.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + bumps.permute(0, 2, 3, 1)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def turned(x: Tensor, quarters: int) -> Tensor:
    """Square images turned by so many quarters of a circle."""
    return torch.rot90(x, quarters, (-2, -1)) if quarters else x
