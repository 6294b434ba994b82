"""Starts whose features are learned so that a Gaussian of each class's own, told from a few examples, is right."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler
from lifelong.learning.gaussians import ALPHA, BETA, HEADS, fitted, scored
from lifelong.learning.optim import adam
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least, one_of
from lifelong.starts.recipe import Recipe, by_distance, fresh, pretrained, settled

FITTED = 500  # classes of the source, at most, whose variances the prior is fitted to


@pretrained(adapt="head")
def gemcl_features(steps: int = 20000, way: int = 20, shots: int = 5, queries: int = 15, by: str = "predictive",
                   lr: float = 0.001, halve: int = 2000) -> Recipe:
    """Features for GeMCL: cross-entropy of the scores that its head, shown a few examples a class, gives further ones.

    While learning, the prior of the variances is alpha = 100 and beta = 1000. At the end it is fitted to the source's
    features, and the learner `gemcl` on this start has it from there.

    Args:
        steps: episodes, 1 or more.
        way: classes of an episode, 2 or more; of a source of several domains an episode is all classes of one.
        shots: examples of each class that the head is shown, 1 or more.
        queries: further examples of each class that it scores, 1 or more.
        by: the head, 'predictive' or 'map', see the learner `gemcl`.
        lr: step size of Adam, above 0.
        halve: episodes after which the step size is halved, again and again, 1 or more.

    Source: Banayeeanzade et al. 2021, "Generative vs. discriminative: rethinking the meta-continual learning", with the
        numbers of its code for Omniglot. It keeps the best of its checkpoints on validation characters, here the last;
        it fits the prior to the variances of whole classes, here their marginal likelihood is greatest, with alpha 1
        or more, so that 'map' has a variance after one example. Of a source of several domains the output layer is set
        to the distances to each class's mean, as for `protonet`.
    """
    at_least(2, way=way)
    at_least(1, shots=shots, queries=queries, halve=halve)
    one_of("by", by, HEADS)
    above(0, lr=lr)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        y, asked = episode["y"], episode["asked"]
        z = fresh(net, params, episode["x"])
        z = z if z.dtype == torch.float64 else z.float()
        scores = _scores(z[len(y):], z[:len(y)], y, len(asked) // queries, by, ALPHA, BETA)
        return F.cross_entropy(scores, asked), {"accuracy": (scores.argmax(-1) == asked).float().mean()}

    def more(net: Net, params: Params) -> Params:
        return {"prior.alpha": torch.tensor(ALPHA), "prior.beta": torch.tensor(BETA)}

    def finish(net: Net, params: Params, sampler: Sampler) -> Params:
        params = settled(net, params, sampler)
        rows = sampler.source.rows[0]
        chosen = rows[torch.randperm(len(rows), generator=sampler.g)[:FITTED]]
        assert net.features is not None  # it has learned on them
        z = torch.stack([net.features(params, sampler.fetch(own)[0]).double() for own in chosen])
        alpha, beta = fitted((z - z.mean(1, keepdim=True)).square().sum(1), z.shape[1])
        if sampler.source.domains > 1:
            params = by_distance(net, params, sampler, shots + queries)
        return params | {"prior.alpha": alpha.to(params["prior.alpha"]), "prior.beta": beta.to(params["prior.beta"])}

    def answer(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
        if net.features is None:
            raise ValueError("this network does not say what its features are")
        z = net.features(params, torch.cat([x, query])).double()
        return _scores(z[len(x):], z[:len(x)], y, way, by, params["prior.alpha"], params["prior.beta"])

    return Recipe("conv4(width=64, norm='batch', down='pool')", steps,
                  lambda sampler: sampler.episode(way, shots, queries), loss,
                  lambda step: adam(lr * 0.5 ** (step // halve)), more=more, finish=finish, answer=answer,
                  units=lambda source: source.n_classes if source.domains > 1 else 1)


def _scores(asked: Tensor, z: Tensor, y: Tensor, way: int, head: str, alpha: float | Tensor,
            beta: float | Tensor) -> Tensor:
    """Scores [m, way] of features `asked` [m, F] after features `z` [n, F] of classes `y` [n]."""
    unit = F.one_hot(y, way).to(z.dtype)
    n = unit.sum(0).unsqueeze(-1)
    m = unit.mT @ z / n
    spread = unit.mT @ (z - m[y]).square()
    return scored(head, asked, m, spread, n, alpha, beta, asked.dtype)
