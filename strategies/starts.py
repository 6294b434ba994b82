"""Where learning begins."""

import torch.nn.functional as F
from torch import Tensor

from lifelong.learner import Initialization
from lifelong.models import Net, Params
from lifelong.optim import adam, falling
from lifelong.randomness import generator
from lifelong.registry import above, at_least
from lifelong.start import Episode, Recipe, Sampler, pretrained


def random() -> Initialization:
    """The network's own random initialization, drawn from the seed; what is used when no start is named."""
    return Initialization(lambda net, seed: net.init(generator(seed, "init")))


@pretrained(adapt="head")
def supervised(steps: int = 2000, batch: int = 64, lr: float = 0.001) -> Recipe:
    """A network trained to tell all classes of the source apart, with nothing in mind of learning on.

    Args:
        steps: of gradient descent, 1 or more.
        batch: examples a step, 1 or more.
        lr: step size of Adam, above 0, that falls to 0 along half a cosine.

    Source: the Pre-training baseline of Javed & White 2019, arXiv:1905.12588.
    """
    at_least(1, batch=batch)
    above(0, lr=lr)

    def draw(sampler: Sampler) -> Episode:
        x, y = sampler.fetch(sampler.any(batch))
        return {"x": x, "y": y}

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        scores = net.apply(params, episode["x"]).float()
        return F.cross_entropy(scores, episode["y"]), {"accuracy": (scores.argmax(-1) == episode["y"]).float().mean()}

    return Recipe("conv4", steps, draw, loss, lambda step: adam(lr * falling(step, steps)))
