"""Starts learned so that learning on, one image after another, does not forget: OML and ANML."""

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
    """Online-aware meta-learning: features on which the output layer learns image after image without forgetting.

    A step's objective is the cross-entropy of a meta batch after the output layer alone has learned a trajectory by
    gradient descent, one image at a time: theta -> L(theta, W - inner_lr * sum_j d_j phi_j), d_j = softmax(scores) -
    onehot. The features phi do not change meanwhile, so all are computed at once, and scores after j images are those
    before less inner_lr * sum_{i<j} d_i (phi_i . phi + 1): the loop runs on products of features, and no copy of the
    output layer is made.

    Args:
        steps: meta-updates, 1 or more.
        classes: of a trajectory, one after another; of a source of several domains, domains. 1 or more.
        shots: images of each, 1 or more.
        others: further images of each in the meta batch; 0: those of the trajectory again.
        remember: images of any class in the meta batch, 0 or more.
        inner_lr: step size within a trajectory, above 0.
        lr: step size of Adam, above 0.
        order: 'second', or 'first' takes the trajectory's changes for constants.

    Source: Javed & White 2019, arXiv:1905.12588, in the authors' later code: one linear layer is learned within a
        trajectory, the rows of its classes are drawn anew before, and the first layer of weights is meta-learned too.
        There, classes to learn come from one half of all and those to remember from the other; here both come from
        all. `oml(classes=1, shots=20, others=0, remember=64)` is the recipe of ANML on this network.
    """
    _check(classes, shots, others, remember, inner_lr, lr, order)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        k, y = episode["trajectory"], episode["y"]
        if net.features is None:
            raise ValueError("oml needs a network that says what its features are")
        phi = net.features(params, episode["x"])
        with torch.autocast(phi.device.type, enabled=False):
            head = Head(net, params, inner_lr, order == "second")
            phi = phi.to(head.weight.dtype)
            before = head.fixed(phi[:k])
            for j in range(k):
                head.learn(phi[j], before[j], y[j])
            return _asked(head, phi, y, episode)

    return _recipe("oml_net", steps, classes, shots, others, remember, lr, loss)


@pretrained(adapt="head")
def anml(steps: int = 20000, classes: int = 1, shots: int = 20, others: int = 0, remember: int = 64,
         inner_lr: float = 0.1, lr: float = 1e-3, order: str = "first") -> Recipe:
    """A neuromodulated meta-learning algorithm: a gate, learned with the network, decides which features may learn.

    A step's objective is the cross-entropy of a meta batch after the whole prediction network, but not the gate, has
    learned a trajectory by gradient descent, one image at a time. The gate does not change meanwhile, so its masks are
    computed once; the output layer is never copied, but scored as by `oml`.

    Args:
        steps, classes, shots, remember, lr: see `oml`.
        others: see `oml`; 0 asks the trajectory again.
        inner_lr: step size within a trajectory, above 0.
        order: 'first' takes the trajectory's changes for constants, as the authors' code does; 'second' does not, as
            their paper says.

    Source: Beaulieu et al. 2020, arXiv:2002.09571. The row of a trajectory's class is drawn anew before it is learned,
        as in their code.
    """
    _check(classes, shots, others, remember, inner_lr, lr, order)

    def loss(net: Net, params: Params, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
        k, x, y, second = episode["trajectory"], episode["x"], episode["y"], order == "second"
        if net.gate is None:
            raise ValueError("anml needs a network with a gate, such as anml_net")
        masks = net.gate.mask(params, x)
        slow = {name: p for name, p in params.items() if not name.startswith("gate") and name not in net.head}
        fast = slow if second else {name: p.detach().requires_grad_() for name, p in slow.items()}
        head = Head(net, params, inner_lr, second)
        inner = masks[:k] if second else masks[:k].detach()
        for j in range(k):
            phi = net.gate.features(fast, x[j:j + 1], inner[j:j + 1])
            with torch.autocast(phi.device.type, enabled=False):
                phi = phi[0].to(head.weight.dtype)
                error = head.learn(phi, head.fixed(phi), y[j])
            grads = torch.autograd.grad(error, list(fast.values()), create_graph=second)
            fast = {name: p - inner_lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
            if not second:
                fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
        if not second:
            fast = {name: slow[name] + (p - slow[name]).detach() for name, p in fast.items()}
        phi = net.gate.features(fast, x, masks)
        with torch.autocast(phi.device.type, enabled=False):
            return _asked(head, phi.to(head.weight.dtype), y, episode)

    return _recipe("anml_net", steps, classes, shots, others, remember, lr, loss)


class Head:
    """A linear layer that learns one example after another by gradient descent, without a copy of its weights."""

    def __init__(self, net: Net, params: Params, lr: float, second: bool) -> None:
        self.weight, self.bias = (params[name] for name in net.head)
        self.lr, self.second = lr, second
        self.phi = self.weight.new_zeros(0, self.weight.shape[1])  # what was learned, and towards which scores
        self.towards = self.weight.new_zeros(0, len(self.bias))

    def fixed(self, phi: Tensor) -> Tensor:
        """Scores of features [..., F] before anything was learned."""
        weight, bias = (self.weight, self.bias) if self.second else (self.weight.detach(), self.bias.detach())
        return F.linear(phi, weight, bias)

    def moved(self, phi: Tensor) -> Tensor:
        """By how much learning has moved the scores of features [..., F]."""
        return -self.lr * ((phi @ self.phi.mT + 1) @ self.towards)

    def learn(self, phi: Tensor, before: Tensor, y: Tensor) -> Tensor:
        """The loss of one example with features [F], scores `before` [C] and class `y` [], which is then learned."""
        scores = before + self.moved(phi)
        towards = scores.softmax(-1) - F.one_hot(y, len(scores))
        if not self.second:
            phi, towards = phi.detach(), towards.detach()
        error = scores.logsumexp(-1) - scores.gather(0, y.view(1))[0]
        self.phi = torch.cat([self.phi, phi.unsqueeze(0)])
        self.towards = torch.cat([self.towards, towards.unsqueeze(0)])
        return error

    def __call__(self, phi: Tensor) -> Tensor:
        """Scores of features [..., F] now."""
        return F.linear(phi, self.weight, self.bias) + self.moved(phi)


def _asked(head: Head, phi: Tensor, y: Tensor, episode: Episode) -> tuple[Tensor, dict[str, Tensor]]:
    first = episode["asked"]
    scores = head(phi[first:])
    right = (scores.argmax(-1) == y[first:]).float().mean()
    return F.cross_entropy(scores, y[first:]), {"accuracy": right}


def _check(classes: int, shots: int, others: int, remember: int, inner_lr: float, lr: float, order: str) -> None:
    at_least(1, classes=classes, shots=shots)
    at_least(0, others=others, remember=remember)
    above(0, inner_lr=inner_lr, lr=lr)
    one_of("order", order, ("first", "second"))


def _recipe(model: str, steps: int, classes: int, shots: int, others: int, remember: int, lr: float,
            loss: Callable[[Net, Params, Episode], tuple[Tensor, dict[str, Tensor]]]) -> Recipe:
    """Trajectories of `classes` times `shots` images, and what is asked after them."""
    def draw(sampler: Sampler) -> Episode:
        rows = _several(sampler, classes, shots + others) if sampler.source.domains > 1 else \
            sampler.way(classes, shots + others)
        x, y = sampler.fetch(torch.cat([rows[:, :shots].flatten(), rows[:, shots:].flatten(), sampler.any(remember)]))
        k = classes * shots
        return {"x": x, "y": y, "trajectory": k, "asked": k if others else 0, "anew": sampler.source.domains == 1}

    def reset(net: Net, params: Params, episode: Episode, g: torch.Generator) -> Params:
        if not episode["anew"]:
            return params
        weight = params[net.head[0]]
        rows = episode["y"][:classes * shots:shots]  # one of each class
        fresh = torch.randn(classes, weight.shape[1], generator=g) * math.sqrt(2 / weight.shape[1])
        return params | {net.head[0]: weight.index_copy(0, rows, fresh.to(weight))}

    return Recipe(model, steps, draw, loss, lambda step: adam(lr), reset=reset)


def _several(sampler: Sampler, count: int, each: int) -> Tensor:
    """Rows [count, each]: of `count` domains, `each` different examples of any class."""
    rows = sampler.source.rows.flatten(1)
    if count > len(rows):
        raise ValueError(f"{count} domains are asked for, but {sampler.source.name} has {len(rows)}")
    if each > rows.shape[1]:
        raise ValueError(f"{each} images of a domain are asked for, but {sampler.source.name} has {rows.shape[1]}")
    return torch.stack([sampler.any(each, rows[d]) for d in torch.randperm(len(rows), generator=sampler.g)[:count]])
