"""What a right answer is: the loss that is minimised, the score that is measured, and how examples are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Problem(NamedTuple):
    """What is learned from a stream's examples and targets.

    Leading axes [...] are lanes; K are the outputs of the network. `competing` [..., B, K] bool are the output units
    that compete for each example, or None: all.

    Attributes:
        name: for messages and records.
        loss: (scores [..., B, K], targets, weight [..., B], competing) -> the weighted sum of the losses of the
            examples [...], and its gradient with respect to the scores [..., B, K].
        example_loss: (scores [B, K], targets, competing) -> the loss of each example [B], for autograd.
        score: (scores [..., B, K], targets) -> a number for each example [..., B]; higher is better. Its mean over the
            test examples of a task stands in `Run.accuracy`.
        score_name: for tables and figures.
        percent: whether scores lie between 0 and 1 and are shown in percent.
        classes: whether targets are output units, [B] int64; else they are numbers, [B, K].
        scaled: whether integer examples become numbers of the precision of training, multiplied by the stream's
            `scale`; else examples stay as they are, such as tokens for an embedding.
    """

    name: str
    loss: Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
    example_loss: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str = "accuracy"
    percent: bool = True
    classes: bool = True
    scaled: bool = True


def log_probabilities(scores: Tensor, competing: Tensor | None) -> Tensor:
    """Log-probabilities over the competing units; a finite stand-in for -inf keeps 0 * -inf away."""
    return (scores if competing is None else scores.masked_fill(~competing, -1e30)).log_softmax(-1)


def cross_entropy_vjp(scores: Tensor, y: Tensor, weight: Tensor, competing: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weighted cross-entropy of scores [..., B, C], and its gradient with respect to them; any leading axes."""
    log_p, at = log_probabilities(scores, competing), y.unsqueeze(-1)
    loss = -(log_p.gather(-1, at).squeeze(-1) * weight).sum(-1)
    gradient = log_p.exp_()
    gradient = gradient.scatter(-1, at, gradient.gather(-1, at) - 1)
    return loss, gradient.mul_(weight.unsqueeze(-1))


def _cross_entropies(scores: Tensor, y: Tensor, competing: Tensor | None) -> Tensor:
    scores = scores if competing is None else scores.masked_fill(~competing, -torch.inf)
    return F.cross_entropy(scores, y, reduction="none")


def _right(scores: Tensor, y: Tensor) -> Tensor:
    return scores.argmax(-1) == y


def squared_error_vjp(scores: Tensor, y: Tensor, weight: Tensor, competing: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weighted squared error of scores [..., B, K], the mean over the outputs, and its gradient with respect to
    them; any leading axes. `competing` must be None."""
    gap = scores - y
    gradient = gap * (weight * (2 / scores.shape[-1])).unsqueeze(-1)
    return (gap * gradient).sum((-1, -2)) / 2, gradient


def _squared_errors(scores: Tensor, y: Tensor, competing: Tensor | None = None) -> Tensor:
    return (scores - y).square().mean(-1)


def _closeness(scores: Tensor, y: Tensor) -> Tensor:
    return -_squared_errors(scores, y)


CLASSIFICATION = Problem("classification", cross_entropy_vjp, _cross_entropies, _right)
REGRESSION = Problem("regression", squared_error_vjp, _squared_errors, _closeness, "negative mean squared error",
                     percent=False, classes=False)
TOKEN_CLASSIFICATION = CLASSIFICATION._replace(name="token classification", scaled=False)
