"""Starts whose features are learned so that the nearest mean of a few examples is the right class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler
from lifelong.learning.optim import adam
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least
from lifelong.starts.recipe import Recipe, by_distance, closeness, fresh, means, nearest_mean, pretrained, settled


@pretrained(adapt="head")
def protonet(steps: int = 2000, way: int = 60, shots: int = 1, queries: int = 5, lr: float = 0.001,
             halve: int = 2000) -> Recipe:
    """Prototypical network: softmax over minus squared Euclidean distances to the mean features of each class.

    Args:
        steps: episodes, 1 or more.
        way: classes of an episode, 2 or more; of a source of several domains an episode is all classes of one.
        shots: examples of each class whose features are averaged, 1 or more.
        queries: further examples of each class that are to lie near, 1 or more.
        lr: step size of Adam, above 0.
        halve: episodes after which the step size is halved, again and again, 1 or more.

    Source: Snell et al. 2017, arXiv:1703.05175, algorithm 1, with its numbers for Omniglot. It stops where validation
        no longer improves; here after `steps`. Statistics of batch normalisation are set after the last step, not
        while learning. Of a source of several domains the output layer is set to the distances to each class's mean
        over 50 domains, up to what all classes share; else it is not learned.
    """
    at_least(2, way=way)
    at_least(1, shots=shots, queries=queries, halve=halve)
    above(0, lr=lr)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        y, asked = episode["y"], episode["asked"]
        z = fresh(net, params, episode["x"])
        z = z if z.dtype == torch.float64 else z.float()
        count = len(asked) // queries
        scores = closeness(z[len(y):], means(z[:len(y)], y, count))
        return F.cross_entropy(scores, asked), {"accuracy": (scores.argmax(-1) == asked).float().mean()}

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = settled(net, params, sampler)
        return params if sampler.source.domains == 1 else by_distance(net, params, sampler, shots + queries)

    return Recipe("conv4(width=64, norm='batch', down='pool')", steps,
                  lambda sampler: sampler.episode(way, shots, queries), loss,
                  lambda step: adam(lr * 0.5 ** (step // halve)), finish=finish, answer=nearest_mean,
                  units=lambda source: source.n_classes if source.domains > 1 else 1)
