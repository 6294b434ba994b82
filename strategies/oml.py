"""Starts that are meta-learned for online learning without forgetting: OML and ANML."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler
from lifelong.learning.optim import adam
from lifelong.networks.net import Net, Params
from lifelong.spec.bounds import above, at_least, one_of
from lifelong.starts.recipe import Recipe, pretrained


@pretrained(adapt="head")
def oml(steps: int = 20000, classes: int = 3, shots: int = 5, others: int = 5, remember: int = 15,
        inner_lr: float = 0.03, lr: float = 1e-4, order: str = "second") -> Recipe:
    """Online-aware meta-learning: features on which the output layer learns one image at a time without forgetting.

    The objective of a meta-update is the cross-entropy on a meta batch after the output layer alone has learned a
    trajectory by gradient descent, one image at a time: L(theta, W - inner_lr * sum_j d_j phi_j) with
    d_j = softmax(scores) - onehot.

    The features phi are constant along a trajectory, so they are computed in one batch. The scores after j images are
    the initial scores minus inner_lr * sum_{i<j} d_i (phi_i . phi + 1): the inner loop works on inner products of
    features and copies no weights.

    Args:
        steps: meta-updates, 1 or more.
        classes: classes of a trajectory, learned one after another, 1 or more; domains if the source has several.
        shots: images of each class in the trajectory, 1 or more.
        others: further images of each class in the meta batch; 0 uses the images of the trajectory instead.
        remember: images of any class in the meta batch, 0 or more.
        inner_lr: step size within a trajectory, above 0.
        lr: step size of Adam, above 0.
        order: 'second' differentiates through the trajectory; 'first' treats its updates as constants.

    Source: Javed & White 2019, arXiv:1905.12588, as in the authors' later code: a trajectory updates one linear layer,
        the output rows of its classes are drawn anew before it, and the first layer of weights is meta-learned too.
        In that code the classes to learn come from one half of all classes and those to remember from the other half;
        here both come from all. `oml(classes=1, shots=20, others=0, remember=64)` is ANML's recipe on this network.
    """
    _check(classes, shots, others, remember, inner_lr, lr, order)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        k, y = episode["trajectory"], episode["y"]
        if net.features is None:
            raise ValueError("oml needs a network that defines its features")
        phi = net.features(params, episode["x"])
        with torch.autocast(phi.device.type, enabled=False):
            head = OnlineHead(net, params, inner_lr, order == "second")
            phi = phi.to(head.weight.dtype)
            initial = head.initial_scores(phi[:k])
            for j in range(k):
                head.learn(phi[j], initial[j], y[j])
            return _meta_loss(head, phi, y, episode)

    return _recipe("oml_net", steps, classes, shots, others, remember, lr, loss)


@pretrained(adapt="head")
def anml(steps: int = 20000, classes: int = 1, shots: int = 20, others: int = 0, remember: int = 64,
         inner_lr: float = 0.1, lr: float = 1e-3, order: str = "first") -> Recipe:
    """ANML, a neuromodulated meta-learning algorithm: a learned gate decides which features take part in learning.

    The objective of a meta-update is the cross-entropy on a meta batch after the whole prediction network, but not the
    gate, has learned a trajectory by gradient descent, one image at a time. The gate is constant along a trajectory,
    so its masks are computed in one batch. The output layer is computed as in `oml`, without a copy.

    Args:
        steps, classes, shots, others, remember, lr: as in `oml`.
        inner_lr: step size within a trajectory, above 0.
        order: 'first' treats the updates of the trajectory as constants, as the authors' code does; 'second'
            differentiates through them, as the paper says.

    Source: Beaulieu et al. 2020, arXiv:2002.09571. The output row of a trajectory's class is drawn anew before the
        class is learned, as in the authors' code.
    """
    _check(classes, shots, others, remember, inner_lr, lr, order)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        k, x, y, second = episode["trajectory"], episode["x"], episode["y"], order == "second"
        if net.gate is None:
            raise ValueError("anml needs a network with a gate, such as anml_net")
        masks = net.gate.mask(params, x)
        slow = {name: p for name, p in params.items() if not name.startswith("gate") and name not in net.head}
        fast = slow if second else {name: p.detach().requires_grad_() for name, p in slow.items()}
        head = OnlineHead(net, params, inner_lr, second)
        inner = masks[:k] if second else masks[:k].detach()
        for j in range(k):
            phi = net.gate.features(fast, x[j:j + 1], inner[j:j + 1])
            with torch.autocast(phi.device.type, enabled=False):
                phi = phi[0].to(head.weight.dtype)
                error = head.learn(phi, head.initial_scores(phi), y[j])
            grads = torch.autograd.grad(error, list(fast.values()), create_graph=second)
            fast = {name: p - inner_lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
            if not second:
                fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
        if not second:
            fast = {name: slow[name] + (p - slow[name]).detach() for name, p in fast.items()}
        phi = net.gate.features(fast, x, masks)
        with torch.autocast(phi.device.type, enabled=False):
            return _meta_loss(head, phi.to(head.weight.dtype), y, episode)

    return _recipe("anml_net", steps, classes, shots, others, remember, lr, loss)


class OnlineHead:
    """A linear output layer that learns one example at a time by gradient descent without copying its weights.

    It keeps the features and the score gradients of the learned examples; their products give the change in scores.

    Args:
        net: the network, whose `head` names the layer's parameters.
        params: its parameters.
        lr: step size.
        second: whether gradients flow through the learned examples.
    """

    def __init__(self, net: Net, params: Params, lr: float, second: bool) -> None:
        self.weight, self.bias = (params[name] for name in net.head)
        self.lr, self.second = lr, second
        self.phi = self.weight.new_zeros(0, self.weight.shape[1])  # features of the learned examples
        self.grads = self.weight.new_zeros(0, len(self.bias))  # gradients of their losses with respect to the scores

    def initial_scores(self, phi: Tensor) -> Tensor:
        """Scores [..., C] of features [..., F] before any example was learned."""
        weight, bias = (self.weight, self.bias) if self.second else (self.weight.detach(), self.bias.detach())
        return F.linear(phi, weight, bias)

    def change(self, phi: Tensor) -> Tensor:
        """The change in the scores of features [..., F] since the first example was learned, [..., C]."""
        return -self.lr * ((phi @ self.phi.mT + 1) @ self.grads)

    def learn(self, phi: Tensor, initial_scores: Tensor, y: Tensor) -> Tensor:
        """Learns one example and returns its loss before that.

        Args:
            phi: its features [F].
            initial_scores: its `initial_scores` [C].
            y: its class, 0-d.
        """
        scores = initial_scores + self.change(phi)
        grad = scores.softmax(-1) - F.one_hot(y, len(scores))
        if not self.second:
            phi, grad = phi.detach(), grad.detach()
        loss = scores.logsumexp(-1) - scores.gather(0, y.view(1))[0]
        self.phi = torch.cat([self.phi, phi.unsqueeze(0)])
        self.grads = torch.cat([self.grads, grad.unsqueeze(0)])
        return loss

    def __call__(self, phi: Tensor) -> Tensor:
        """Scores [..., C] of features [..., F] after all examples learned so far."""
        return F.linear(phi, self.weight, self.bias) + self.change(phi)


def _meta_loss(head: OnlineHead, phi: Tensor, y: Tensor, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy and accuracy on the meta batch, which begins at row `first_query` of the episode."""
    first = episode["first_query"]
    scores = head(phi[first:])
    accuracy = (scores.argmax(-1) == y[first:]).float().mean()
    return F.cross_entropy(scores, y[first:]), {"accuracy": accuracy}


def _check(classes: int, shots: int, others: int, remember: int, inner_lr: float, lr: float, order: str) -> None:
    at_least(1, classes=classes, shots=shots)
    at_least(0, others=others, remember=remember)
    above(0, inner_lr=inner_lr, lr=lr)
    one_of("order", order, ("first", "second"))


def _recipe(model: str, steps: int, classes: int, shots: int, others: int, remember: int, lr: float,
            loss: Callable[[Net, Params, Episode], tuple[Tensor, dict[str, Tensor]]]) -> Recipe:
    """The recipe of both starts: a trajectory of `classes` times `shots` images, then the meta batch."""
    def draw(sampler: Sampler) -> Episode:
        rows = _domain_rows(sampler, classes, shots + others) if sampler.source.domains > 1 else \
            sampler.classes(classes, shots + others)
        x, y = sampler.fetch(torch.cat([rows[:, :shots].flatten(), rows[:, shots:].flatten(),
                                        sampler.any_rows(remember)]))
        k = classes * shots
        return {"x": x, "y": y, "trajectory": k, "first_query": k if others else 0,
                "new_rows": sampler.source.domains == 1}

    def reset(net: Net, params: Params, episode: Episode, g: torch.Generator) -> Params:
        if not episode["new_rows"]:
            return params
        weight = params[net.head[0]]
        rows = episode["y"][:classes * shots:shots]  # each class once
        values = torch.randn(classes, weight.shape[1], generator=g) * math.sqrt(2 / weight.shape[1])
        return params | {net.head[0]: weight.index_copy(0, rows, values.to(weight))}

    return Recipe(model, steps, draw, loss, lambda step: adam(lr), reset=reset)


def _domain_rows(sampler: Sampler, count: int, examples: int) -> Tensor:
    """Rows [count, examples]: `examples` different examples, of any class, of each of `count` random domains."""
    rows = sampler.source.rows.flatten(1)
    if count > len(rows):
        raise ValueError(f"{sampler.source.name} has {len(rows)} domains, fewer than the {count} requested")
    if examples > rows.shape[1]:
        raise ValueError(f"{sampler.source.name} has {rows.shape[1]} examples per domain, fewer than the {examples} "
                         "requested")
    return torch.stack([sampler.any_rows(examples, rows[d])
                        for d in torch.randperm(len(rows), generator=sampler.g)[:count]])
