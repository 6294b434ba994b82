"""Images changed at random as they are learned: crops and flips, written for a batch and its uniform numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.spec import bounds, expression

NONE = "none"


class Augmentation(NamedTuple):
    """A way to change images at random; each image has its own numbers.

    Attributes:
        draws: uniform numbers that an image needs.
        apply: (images [B, C, H, W] as the pool stores them, numbers [B, draws] in [0, 1)) -> as many images alike.
    """

    draws: int
    apply: Callable[[Tensor, Tensor], Tensor]


def crop(padding: int = 4) -> Augmentation:
    """A window as large as the image, anywhere in the image with `padding` blank pixels around it: a random shift.

    Args:
        padding: pixels added on each side, 1 or more; each of the (2 padding + 1)^2 windows is equally likely. They are
            0, black before any normalisation, as where published code crops before it makes tensors.
    """
    bounds.at_least(1, padding=padding)

    def apply(x: Tensor, u: Tensor) -> Tensor:
        b, c, h, w = x.shape
        down, right = (u * (2 * padding + 1)).long().unbind(1)
        x = F.pad(x, (padding, padding, padding, padding))
        lines = torch.arange(h, device=x.device) + down.view(-1, 1, 1)  # of each channel
        lines = lines + torch.arange(b * c, device=x.device).view(b, c, 1) * x.shape[2]
        # Whole lines first: a gather pixel by pixel takes three times as long.
        x = x.reshape(b * c * x.shape[2], x.shape[3]).index_select(0, lines.flatten())
        columns = torch.arange(w, device=x.device) + right.view(-1, 1, 1)
        return x.view(b, c * h, -1).gather(2, columns.expand(b, c * h, w)).view(b, c, h, w)

    return Augmentation(2, apply)


def flip() -> Augmentation:
    """Left and right exchanged, in half of the images."""

    def apply(x: Tensor, u: Tensor) -> Tensor:
        b, c, h, w = x.shape
        there = torch.arange(w, device=x.device)
        columns = torch.where(u < 0.5, w - 1 - there, there).unsqueeze(1)
        return x.reshape(b, c * h, w).gather(2, columns.expand(b, c * h, w)).view(b, c, h, w)

    return Augmentation(1, apply)


def augmentation(text: str) -> Augmentation | None:
    """What an expression such as "crop(padding=4) + flip" stands for, one after the other; None for 'none'.

    Raises:
        LookupError, ValueError: for what is no such expression.
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
    """The terms of an expression, each with single values; none for 'none'."""
    found = [] if text.strip() == NONE else expression.parse(text, "augmentations")
    if lists := [term.name for term in found if any(isinstance(value, list) for value in term.given.values())]:
        raise ValueError(f"{lists[0]}: an augmentation takes one value of each, got {text!r}; run each by itself")
    return found


def written(text: str) -> str:
    """The same expression, however it was typed, without what is default."""
    return expression.written(terms(text)) or NONE
