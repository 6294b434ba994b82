"""Starts: the random initialisation, and a network trained as a plain classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.augment import distort
from lifelong.data.source import Episode, Sampler
from lifelong.learning.learner import Initialization
from lifelong.learning.optim import adam, falling
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.spec.bounds import above, at_least, below
from lifelong.starts.recipe import Recipe, episode_features, episode_scores, pretrained, set_statistics


def random() -> Initialization:
    """The network's random initialisation, drawn from the seed; the default if an expression names no start."""
    return Initialization(lambda net, seed: net.init(generator(seed, "init")))


@pretrained(adapt="head")
def supervised(steps: int = 2000, batch: int = 64, lr: float = 0.001, weight_decay: float = 0.0, cosine: float = 0.0,
               smoothing: float = 0.0, augment: float = 0.0, elastic: float = 0.0) -> Recipe:
    """Supervised pretraining: a classifier of all classes of the source, trained with cross-entropy.

    Args:
        steps: steps of gradient descent, 1 or more.
        batch: examples per step, 1 or more.
        lr: first step size of Adam, above 0; it decays to 0 along half a cosine.
        weight_decay: weight decay of Adam, 0 or more.
        cosine: scale of a cosine classifier, 0 or more: scores are this number times the cosine between the features
            and the weights of a class, and after the last step the output layer is set to choose the same classes.
            0 uses the scores of the output layer.
        smoothing: label smoothing: the share of the target spread over all classes, at least 0 and below 1.
        augment: `strength` of the random affine distortions `distort` of training images, 0 or more.
        elastic: `elastic` of `distort`, 0 or more.

    Source: the Pre-training baseline of Javed & White 2019, arXiv:1905.12588. The cosine classifier is that of Gidaris
        & Komodakis 2018, arXiv:1804.09458, but its scale is given instead of learned; label smoothing is that of
        Szegedy et al. 2016, arXiv:1512.00567.
    """
    at_least(1, batch=batch)
    at_least(0, weight_decay=weight_decay, cosine=cosine, smoothing=smoothing, augment=augment, elastic=elastic)
    above(0, lr=lr)
    below(1, smoothing=smoothing)
    distortion = distort(augment, elastic)

    def draw(sampler: Sampler) -> Episode:
        x, y = sampler.fetch(sampler.any_rows(batch))
        if augment or elastic:
            affine = torch.rand(6, batch, generator=sampler.g).mT
            points = torch.rand(batch, distortion.draws - 6, generator=sampler.g)
            x = distortion.apply(x, torch.cat([affine, points], 1))
        return {"x": x, "y": y}

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = episode["x"], episode["y"]
        if cosine:
            z, weight = episode_features(net, params, x), params[net.head[0]]
            scores = cosine * F.linear(F.normalize(z, dim=-1), F.normalize(weight, dim=-1)).float()
        else:
            scores = episode_scores(net, params, x).float()
        return (F.cross_entropy(scores, y, label_smoothing=smoothing),
                {"accuracy": (scores.argmax(-1) == y).float().mean()})

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = set_statistics(net, params, sampler)
        if not cosine or net.features is None:
            return params
        # The linear layer with the same decisions as the cosine classifier, and scores of the same magnitude.
        z, (weight, bias) = net.features(params, sampler.fetch(sampler.any_rows(256))[0]), net.head
        rows = cosine * F.normalize(params[weight], dim=-1) / z.norm(dim=-1).mean()
        return params | {weight: rows.to(params[weight].dtype), bias: torch.zeros_like(params[bias])}

    return Recipe("conv4", steps, draw, loss, lambda step: adam(lr * falling(step, steps), weight_decay=weight_decay),
                  finish=finish)
