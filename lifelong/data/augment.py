"""Random image augmentations: functions of a batch of images and of the uniform random numbers given with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.spec import bounds, expression

NONE = "none"
ANGLE, SHEAR, ZOOM, SHIFT = math.radians(12), 0.25, 0.15, 0.16  # what `distort(strength=1)` draws at most
GRID = 5  # points along each side of the grid of elastic distortions


class Augmentation(NamedTuple):
    """A random change of images; every image has its own random numbers.

    Attributes:
        draws: how many uniform numbers one image needs.
        apply: (images [B, C, H, W] as the pool stores them, uniform numbers [B, draws] in [0, 1)) -> the augmented
            images, of the same shape and type.
    """

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]


def crop(padding: int = 4) -> Augmentation:
    """Random crop of the image's own size from the image padded with `padding` blank pixels: a random shift.

    Args:
        padding: pixels added on each side, 1 or more; each of the (2 padding + 1)^2 windows is equally likely. The
            added pixels are 0, which is black before any normalisation, as in published code that crops before it
            converts images to tensors.
    """
    bounds.at_least(1, padding=padding)

    def apply(x: Tensor, u: Tensor) -> Tensor:
        b, c, h, w = x.shape
        down, right = (u * (2 * padding + 1)).long().unbind(1)
        x = F.pad(x, (padding, padding, padding, padding))
        lines = torch.arange(h, device=x.device) + down.view(-1, 1, 1)  # of each channel
        lines = lines + torch.arange(b * c, device=x.device).view(b, c, 1) * x.shape[2]
        # Whole lines first: gathering single pixels takes three times as long.
        x = x.reshape(b * c * x.shape[2], x.shape[3]).index_select(0, lines.flatten())
        columns = torch.arange(w, device=x.device) + right.view(-1, 1, 1)
        return x.view(b, c * h, -1).gather(2, columns.expand(b, c * h, w)).view(b, c, h, w)

    return Augmentation(2, apply)


def flip() -> Augmentation:
    """Random horizontal flip of each image, with probability 1/2."""

    def apply(x: Tensor, u: Tensor) -> Tensor:
        b, c, h, w = x.shape
        same = torch.arange(w, device=x.device)
        columns = torch.where(u < 0.5, w - 1 - same, same).unsqueeze(1)
        return x.reshape(b, c * h, w).gather(2, columns.expand(b, c * h, w)).view(b, c, h, w)

    return Augmentation(1, apply)


def distort(strength: float = 1.0, elastic: float = 0.0) -> Augmentation:
    """Random affine and elastic distortion of each image; pixels from outside the image repeat its edge.

    An image is rotated by up to 12 degrees either way, sheared by up to 0.25, scaled along each axis by a factor
    between exp(-0.15) and exp(0.15), and shifted along each axis by up to 8 % of its side, all times `strength` and
    uniformly. Pixels are interpolated bilinearly, and rounded in images of integers.

    Args:
        strength: factor of all these ranges, 0 or more; 0 applies no affine distortion.
        elastic: largest displacement of the points of a 5x5 grid, in half sides of the image, 0 or more; pixels
            between the points are displaced by bicubic interpolation. 0 applies no elastic distortion.
    """
    bounds.at_least(0, strength=strength, elastic=elastic)

    def apply(x: Tensor, u: Tensor) -> Tensor:
        pixels = x if x.is_floating_point() else x.float()
        angle, shear, log_width, log_height, right, down = (
            (u[:, i] * 2 - 1) * (most * strength)
            for i, most in enumerate((ANGLE, SHEAR, ZOOM, ZOOM, SHIFT, SHIFT)))
        width, height = log_width.exp(), log_height.exp()
        cos, sin = angle.cos(), angle.sin()
        rows = [torch.stack([cos * width, (cos * shear - sin) * height, right], 1),
                torch.stack([sin * width, (sin * shear + cos) * height, down], 1)]
        grid = _affine_grid(torch.stack(rows, 1).to(pixels), *x.shape[-2:])
        if elastic:
            points = ((u[:, 6:] * 2 - 1) * elastic).view(-1, 2, GRID, GRID).to(pixels)
            moves = F.interpolate(points, size=x.shape[-2:], mode="bicubic", align_corners=True)
            grid = grid + moves.permute(0, 2, 3, 1)
        pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        return pixels if x.is_floating_point() else pixels.round().to(x.dtype)

    return Augmentation(6 + (2 * GRID**2 if elastic else 0), apply)


def _affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """`F.affine_grid` [B, H, W, 2] of `theta` [B, 2, 3], bit for bit, but supported by `torch.vmap`."""
    rows, columns = (torch.linspace(-1, 1, n, dtype=theta.dtype, device=theta.device) * (n - 1) / n
                     for n in (height, width))
    points = torch.stack([columns.expand(height, -1), rows.unsqueeze(1).expand(-1, width),
                          torch.ones(height, width, dtype=theta.dtype, device=theta.device)], -1)
    return points.view(1, -1, 3).expand(len(theta), -1, -1).bmm(theta.mT).view(-1, height, width, 2)


def augmentation(text: str) -> Augmentation | None:
    """The augmentation of an expression such as "crop(padding=4) + flip", applied from left to right.

    Returns None for 'none'.

    Raises:
        LookupError: an unknown name or option.
        ValueError: any other error in the expression, or a term that is not an augmentation.
    """
    parts = [expression.build(term, {}) for term in terms(text)]
    for term, part in zip(terms(text), parts, strict=True):
        if not isinstance(part, Augmentation):
            raise ValueError(f"{term.name} makes a {type(part).__name__}, not an Augmentation")
    if not parts:
        return None
    counts = [part.draws for part in parts]

    def apply(x: Tensor, u: Tensor) -> Tensor:
        for part, numbers in zip(parts, u.split(counts, 1), strict=True):
            x = part.apply(x, numbers)
        return x

    return Augmentation(sum(counts), apply)


def terms(text: str) -> list[expression.Term]:
    """The terms of an augmentation expression; an empty list for 'none'.

    Raises:
        ValueError: an option has a list of values.
    """
    found = [] if text.strip() == NONE else expression.parse(text, "augmentations")
    if lists := [term.name for term in found if any(isinstance(value, list) for value in term.given.values())]:
        raise ValueError(f"{lists[0]}: an option of an augmentation takes one value, not a list; got {text!r}: run "
                         "each augmentation separately")
    return found


def written(text: str) -> str:
    """The expression in its canonical form: without default values, with standard spacing."""
    return expression.written(terms(text)) or NONE
