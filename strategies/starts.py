"""Where learning begins."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.distort import distorted
from lifelong.data.source import Episode, Sampler
from lifelong.learning.learner import Initialization
from lifelong.learning.optim import adam, falling
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.spec.bounds import above, at_least, below
from lifelong.starts.recipe import Recipe, fresh, fresh_scores, pretrained, settled


def random() -> Initialization:
    """The network's own random initialization, drawn from the seed; what is used when no start is named."""
    return Initialization(lambda net, seed: net.init(generator(seed, "init")))


@pretrained(adapt="head")
def supervised(steps: int = 2000, batch: int = 64, lr: float = 0.001, weight_decay: float = 0.0, cosine: float = 0.0,
               smoothing: float = 0.0, augment: float = 0.0, elastic: float = 0.0) -> Recipe:
    """A network trained to tell all classes of the source apart, with nothing in mind of learning on.

    Args:
        steps: of gradient descent, 1 or more.
        batch: examples a step, 1 or more.
        lr: step size of Adam, above 0, that falls to 0 along half a cosine.
        weight_decay: of Adam, 0 or more.
        cosine: scores are this times the cosine of features and the class's weights, and at the end the output layer
            is set to choose likewise; 0: scores of the output layer.
        smoothing: share of the target that is spread over all classes, from 0 to below 1.
        augment: how far images are distorted at random, see `lifelong.views.distorted`; 0: not at all.
        elastic: how far elastically besides.

    Source: the Pre-training baseline of Javed & White 2019, arXiv:1905.12588; the cosine classifier is Gidaris &
        Komodakis 2018, arXiv:1804.09458 (their scale is learned, this one given), label smoothing Szegedy et al.
        2016, arXiv:1512.00567.
    """
    at_least(1, batch=batch)
    at_least(0, weight_decay=weight_decay, cosine=cosine, smoothing=smoothing, augment=augment, elastic=elastic)
    above(0, lr=lr)
    below(1, smoothing=smoothing)

    def draw(sampler: Sampler) -> Episode:
        x, y = sampler.fetch(sampler.any(batch))
        return {"x": distorted(x, sampler.g, augment, elastic) if augment or elastic else x, "y": y}

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        x, y = episode["x"], episode["y"]
        if cosine:
            z, weight = fresh(net, params, x), params[net.head[0]]
            scores = cosine * F.linear(F.normalize(z, dim=-1), F.normalize(weight, dim=-1)).float()
        else:
            scores = fresh_scores(net, params, x).float()
        return (F.cross_entropy(scores, y, label_smoothing=smoothing),
                {"accuracy": (scores.argmax(-1) == y).float().mean()})

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = settled(net, params, sampler)
        if not cosine or net.features is None:
            return params
        # The linear layer that chooses as the cosine classifier does, its scores of the same size.
        z, (weight, bias) = net.features(params, sampler.fetch(sampler.any(256))[0]), net.head
        rows = cosine * F.normalize(params[weight], dim=-1) / z.norm(dim=-1).mean()
        return params | {weight: rows.to(params[weight].dtype), bias: torch.zeros_like(params[bias])}

    return Recipe("conv4", steps, draw, loss, lambda step: adam(lr * falling(step, steps), weight_decay=weight_decay),
                  finish=finish)
