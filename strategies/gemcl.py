"""The start of GeMCL: features with which one Gaussian per class, estimated from a few examples, classifies well."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler
from lifelong.learning.gaussians import ALPHA, BETA, HEADS, fitted, scored
from lifelong.learning.optim import adam
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least, one_of
from lifelong.starts.recipe import Recipe, episode_features, head_of_distances, pretrained, set_statistics

FITTED = 500  # the prior is fitted to the variances of at most this many classes of the source


@pretrained(adapt="head")
def gemcl_features(steps: int = 20000, way: int = 20, shots: int = 5, queries: int = 15, by: str = "predictive",
                   lr: float = 0.001, halve: int = 2000) -> Recipe:
    """Features for the learner `gemcl`: its head is fitted to a few examples per class and must classify others.

    The objective is the cross-entropy of the head's scores of the query examples. While learning, the prior of the
    variances is alpha = 100 and beta = 1000. After the last step the prior is fitted to the source's features, and a
    `gemcl` on this start uses the fitted prior.

    Args:
        steps: episodes, 1 or more.
        way: classes of an episode, 2 or more; an episode of a source of several domains has all classes of one domain.
        shots: support examples of each class, which the head is fitted to, 1 or more.
        queries: query examples of each class, which the head classifies, 1 or more.
        by: the head, 'predictive' or 'map', as in the learner `gemcl`.
        lr: first step size of Adam, above 0.
        halve: the step size is halved every `halve` episodes, 1 or more.

    Source: Banayeeanzade et al. 2021, "Generative vs. discriminative: rethinking the meta-continual learning", with the
        numbers of its code for Omniglot. The code keeps the checkpoint that is best on validation characters; this
        keeps the last. The code fits the prior to the variances of whole classes; this maximises their marginal
        likelihood, with alpha 1 or more, so that 'map' has a variance after one example. With a source of several
        domains the output layer is set as by `protonet`.
    """
    at_least(2, way=way)
    at_least(1, shots=shots, queries=queries, halve=halve)
    one_of("by", by, HEADS)
    above(0, lr=lr)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        y, query_y = episode["y"], episode["query_y"]
        z = episode_features(net, params, episode["x"])
        z = z if z.dtype == torch.float64 else z.float()
        scores = _scores(z[len(y):], z[:len(y)], y, len(query_y) // queries, by, ALPHA, BETA)
        return F.cross_entropy(scores, query_y), {"accuracy": (scores.argmax(-1) == query_y).float().mean()}

    def prior(net: Net, params: Params) -> Params:
        return {"prior.alpha": torch.tensor(ALPHA), "prior.beta": torch.tensor(BETA)}

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = set_statistics(net, params, sampler)
        rows = sampler.source.rows[0]
        classes = rows[torch.randperm(len(rows), generator=sampler.g)[:FITTED]]
        assert net.features is not None  # `episode_features` has refused such a network
        z = torch.stack([net.features(params, sampler.fetch(examples)[0]).double() for examples in classes])
        alpha, beta = fitted((z - z.mean(1, keepdim=True)).square().sum(1), z.shape[1])
        if sampler.source.domains > 1:
            params = head_of_distances(net, params, sampler, shots + queries)
        return params | {"prior.alpha": alpha.to(params["prior.alpha"]), "prior.beta": beta.to(params["prior.beta"])}

    def answer(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        if net.features is None:
            raise ValueError("this network does not say what its features are")
        z = net.features(params, torch.cat([x, query])).double()
        return _scores(z[len(x):], z[:len(x)], y, way, by, params["prior.alpha"], params["prior.beta"])

    return Recipe("conv4(width=64, norm='batch', down='pool')", steps,
                  lambda sampler: sampler.episode(way, shots, queries), loss,
                  lambda step: adam(lr * 0.5 ** (step // halve)), extra_params=prior, finish=finish, answer=answer,
                  units=lambda source: source.n_classes if source.domains > 1 else 1)


def _scores(query: Tensor, z: Tensor, y: Tensor, way: int, head: str, alpha: float | Tensor,
            beta: float | Tensor) -> Tensor:
    """Scores [m, way] of query features [m, F] by a head fitted to features `z` [n, F] of classes `y` [n]."""
    unit = F.one_hot(y, way).to(z.dtype)
    n = unit.sum(0).unsqueeze(-1)
    m = unit.mT @ z / n
    spread = unit.mT @ (z - m[y]).square()
    return scored(head, query, m, spread, n, alpha, beta, query.dtype)
