"""Where learning begins."""

from lifelong.learner import Initialization
from lifelong.randomness import generator


def random() -> Initialization:
    """The network's own random initialization, drawn from the seed; what is used when no start is named."""
    return Initialization(lambda net, seed: net.init(generator(seed, "init")))
