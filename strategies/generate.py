"""Strategies that replay the samples of a generator."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.learning.learner import State
from lifelong.learning.losses import Loss, cross_entropy, distillation
from lifelong.learning.optim import adam
from lifelong.learning.parts import Part, View
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net, Params
from lifelong.randomness import many
from lifelong.spec.bounds import above, at_least


def normals(u: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """`count` standard normal numbers derived from one uniform number `u`, 0-d."""
    return (math.sqrt(2) * torch.erfinv(2 * many(u, count) - (1 - 2.0**-53))).to(dtype)


class Autoencoder:
    """A variational autoencoder of pixels in [0, 1]; values outside are clipped.

    Args:
        shape: shape of one example.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        latent: dimension of the code of an example.

    Source: Kingma & Welling 2014, arXiv:1312.6114, with Bernoulli pixels.
    """

    def __init__(self, shape: tuple[int, ...], hidden: Sequence[int], latent: int) -> None:
        self.shape, self.latent = shape, latent
        self.nets: dict[str, Net] = {"encoder": mlp(shape, 2 * latent, hidden),
                                     "decoder": mlp((latent,), math.prod(shape), tuple(hidden)[::-1])}

    def init(self, g: torch.Generator, dtype: torch.dtype) -> Params:
        """The parameters of both halves; names begin with `encoder.` and `decoder.`."""
        return {f"{half}.{k}": p.to(dtype) for half, net in self.nets.items() for k, p in net.init(g).items()}

    def _apply(self, half: str, params: Params, x: Tensor) -> Tensor:
        own = {k.removeprefix(f"{half}."): p for k, p in params.items() if k.startswith(half)}
        return self.nets[half].apply(own, x)

    def loss(self, params: Params, x: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence lower bound [B] in nats: cross-entropy of the pixels plus KL divergence of the code."""
        mean, log_variance = self._apply("encoder", params, x).chunk(2, -1)
        pixels = self._apply("decoder", params, mean + noise.view(mean.shape) * (log_variance / 2).exp())
        rebuilt = F.binary_cross_entropy_with_logits(pixels, x.flatten(1).clamp(0, 1), reduction="none").sum(-1)
        return rebuilt + (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2

    def sample(self, params: Params, noise: Tensor) -> Tensor:
        """Examples [B, *shape], the means of the pixels, from normal numbers [B * latent]; needs only the decoder."""
        return self._apply("decoder", params, noise.view(-1, self.latent)).sigmoid().view(-1, *self.shape)


def dgr(distil: bool = False, temperature: float = 2.0, hidden: Sequence[int] = (400, 400), latent: int = 100,
        rate: float = 0.001) -> Part:
    """Deep generative replay (DGR): learns each batch with as many generated examples, labelled by the earlier network.

    In the t-th task the loss is L / t + (1 - 1/t) L_replay. L_replay is the cross-entropy on samples of the earlier
    generator, a variational autoencoder, with the earlier network's predictions as labels. The current generator learns
    from both at every step, with the same weights. The earlier network predicts among the units of earlier tasks; in
    task-incremental streams among those of each earlier task, and L_replay is the mean of these losses.

    Args:
        distil: whether to learn the earlier network's probabilities instead of its predicted class.
        temperature: T > 0 that softens them.
        hidden: widths of the generator's hidden layers.
        latent: dimension of the generator's code, 1 or more.
        rate: step size of the generator's Adam, above 0.

    Source: Shin et al. 2017, arXiv:1705.08690, with the autoencoder and the weights of van de Ven & Tolias 2019,
        arXiv:1904.07734. The softmax includes the units of later tasks, as in all class-incremental learning here.
        Pixels should lie in [0, 1]. Generated examples are scored with the running statistics of batch normalisation.
    """
    above(0, temperature=temperature, rate=rate)
    at_least(1, latent=latent)
    optimizer = adam(rate)

    def begin(view: View) -> State:
        own = Autoencoder(view.pool.shape, hidden, latent).init(view.generator, view.pool.dtype)
        return {"generator": own, "moments": optimizer.init(own), "earlier": earlier(own, view)}

    def earlier(generator: Params, view: View) -> State:
        return {"decoder": {k: p for k, p in generator.items() if k.startswith("decoder")}, "net": dict(view.params)}

    def invented(view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of the earlier generator, and two sets of normal numbers, each for the codes of a batch."""
        noise = normals(view.u[0], 3 * len(view.batch.rows) * latent, view.pool.dtype).chunk(3)
        own = Autoencoder(view.pool.shape, hidden, latent)
        return own.sample(view.state["earlier"]["decoder"], noise[0]), noise[1], noise[2]

    def loss(view: View) -> Loss:
        pool, (x, _, _) = view.pool, invented(view)
        answers, scores = view.net.apply(view.state["earlier"]["net"], x), view.net.apply(view.params, x)
        before = torch.arange(pool.n_tasks, device=x.device) < view.task
        every = torch.ones_like(pool.classes[:1])
        groups = {"task": pool.classes, "class": (pool.classes & before.unsqueeze(-1)).any(0, True), "domain": every}
        replayed = []
        for units in groups[pool.scenario]:
            rivals = units if pool.scenario == "task" else every[0]
            answer = torch.where(units, answers, -1e30)
            if distil:
                replayed.append(distillation(scores, answer, rivals, temperature).mean())
            else:
                replayed.append(F.cross_entropy(torch.where(rivals, scores, -1e30), answer.argmax(-1)))
        counts = before if pool.scenario == "task" else before[:1]
        replay = (torch.stack(replayed) * counts).sum() / counts.sum().clamp(min=1)
        return (cross_entropy(view.batch) + view.task * replay) / (view.task + 1)

    def learn(view: View) -> State:
        (x, *noise), batch, own = invented(view), view.batch, Autoencoder(view.pool.shape, hidden, latent)

        def bound(params: Params) -> Tensor:
            new = (own.loss(params, batch.x, noise[0]) * batch.weight).sum()
            return (new + view.task * own.loss(params, x, noise[1]).mean()) / (view.task + 1)

        grads = torch.func.grad(bound)(view.state["generator"])
        params, moments = ({k: t.clone() for k, t in view.state[name].items()} for name in ("generator", "moments"))
        optimizer.update(params, grads, moments)
        return view.state | {"generator": params, "moments": moments}

    def hand_over(view: View) -> State:
        return view.state | {"earlier": earlier(view.state["generator"], view)}

    return Part(init=begin, draws=1, criterion=loss, step=learn, task=hand_over, boundaries=True, pixels=True,
                classes=True)
