"""Metric-learning starts: features with which the nearest mean of a few examples is the right class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler
from lifelong.learning.optim import adam
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least
from lifelong.starts.recipe import (
    Recipe,
    class_means,
    distance_scores,
    episode_features,
    head_of_distances,
    nearest_mean,
    pretrained,
    set_statistics,
)


@pretrained(adapt="head")
def protonet(steps: int = 2000, way: int = 60, shots: int = 1, queries: int = 5, lr: float = 0.001,
             halve: int = 2000) -> Recipe:
    """Prototypical network: softmax over minus the squared Euclidean distances to the mean features of each class.

    Args:
        steps: episodes, 1 or more.
        way: classes of an episode, 2 or more; an episode of a source of several domains has all classes of one domain.
        shots: support examples of each class, whose features are averaged, 1 or more.
        queries: query examples of each class, which are classified, 1 or more.
        lr: first step size of Adam, above 0.
        halve: the step size is halved every `halve` episodes, 1 or more.

    Source: Snell et al. 2017, arXiv:1703.05175, algorithm 1, with the paper's numbers for Omniglot. The paper stops
        when validation no longer improves; this stops after `steps`. The statistics of batch normalisation are set
        after the last step, not while learning. With a source of several domains the output layer is set so that its
        softmax is that of the distances to each class's mean over 50 domains; otherwise it is not learned.
    """
    at_least(2, way=way)
    at_least(1, shots=shots, queries=queries, halve=halve)
    above(0, lr=lr)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        y, query_y = episode["y"], episode["query_y"]
        z = episode_features(net, params, episode["x"])
        z = z if z.dtype == torch.float64 else z.float()
        scores = distance_scores(z[len(y):], class_means(z[:len(y)], y, len(query_y) // queries))
        return F.cross_entropy(scores, query_y), {"accuracy": (scores.argmax(-1) == query_y).float().mean()}

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = set_statistics(net, params, sampler)
        return params if sampler.source.domains == 1 else head_of_distances(net, params, sampler, shots + queries)

    return Recipe("conv4(width=64, norm='batch', down='pool')", steps,
                  lambda sampler: sampler.episode(way, shots, queries), loss,
                  lambda step: adam(lr * 0.5 ** (step // halve)), finish=finish, answer=nearest_mean,
                  units=lambda source: source.n_classes if source.domains > 1 else 1)
