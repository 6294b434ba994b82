"""How starts are learned: step after step down the gradient of an episode's objective."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong.data.source import Episode, Sampler, Source
from lifelong.learning.learner import Initialization
from lifelong.learning.optim import Optimizer
from lifelong.networks.net import Net, Params
from lifelong.randomness import generator
from lifelong.spec import bounds
from lifelong.starts.weights import ADAPT, HEADS


@dataclass(frozen=True)
class Recipe:
    """How the parameters of a start are learned: step after step down the gradient of an episode's objective.

    Attributes:
        model: the network that it is meant for, an expression.
        steps: how many.
        draw: (sampler) -> episode, a dict of tensors.
        loss: (net, params, episode) -> 0-d objective, differentiable in `params`, and what else is to be kept of the
            step, 0-d each by name, such as an accuracy.
        optimizer: (step) -> the optimizer at that step, so that its step size may change.
        reset: (net, params, episode, g) -> params with some drawn anew before the step, as OML's output rows.
        more: (net, params) -> further parameters that are learned, for example step sizes.
        finish: (net, params, sampler) -> params, once after the last step, for example statistics of normalisation.
        answer: (net, params, x [n, *shape], y [n], query [m, *shape], way) -> scores [m, way], how it answers queries
            after it was shown a few examples of `way` new classes, as many of each, class after class; None: by the
            nearest mean of features. Few-shot evaluation lifts it to many episodes by vmap.
        units: (source) -> output units while it is learned.
        full: whether it cannot be learned in bfloat16, as where gradients of convolutions are lifted over tasks.
    """

    model: str
    steps: int
    draw: Callable[[Sampler], Episode]
    loss: Callable[[Net, Params, Episode], tuple[Tensor, dict[str, Tensor]]]
    optimizer: Callable[[int], Optimizer]
    reset: Callable[[Net, Params, Episode, torch.Generator], Params] | None = None
    more: Callable[[Net, Params], Params] = lambda net, params: {}
    finish: Callable[[Net, Params, Sampler], Params] | None = None
    answer: Callable[[Net, Params, Tensor, Tensor, Tensor, int], Tensor] | None = None
    units: Callable[[Source], int] = lambda source: source.n_classes
    full: bool = False

    def __post_init__(self) -> None:
        bounds.at_least(1, steps=self.steps)


class Diverged(RuntimeError):
    """The outer loop met a loss or a parameter that is not finite; the sentence names the last good checkpoint."""


# ---- learning


CHECKED = 50  # steps after which losses and parameters are looked at, or after a second


def learn(recipe: Recipe, net: Net, source: Source, *, seed: int = 0, device: torch.device | str = "cpu",
          precision: str = "float32", save: Callable[[dict[str, Any]], None] | None = None, save_every: float = 30.0,
          tell: Callable[[float], None] = lambda share: None,
          resume: Mapping[str, Any] | None = None) -> tuple[Params, dict[str, Tensor]]:
    """Learns a start; the parameters, and what the recipe says of its steps, [steps] each: 'loss' and its logs.

    Args:
        recipe: how.
        net: whose parameters.
        source: from what.
        seed: of everything that is drawn.
        device: where.
        precision: 'float32', or 'bfloat16' for the products and convolutions alone, or 'float64'.
        save: writes a checkpoint, every `save_every` seconds; its tensors are moved on by the next step.
        tell: is told the share that is done.
        resume: a checkpoint; learning goes on to the same bits.

    Raises:
        Diverged: where a loss or a parameter is not finite.
    """
    device = torch.device(device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    if resume:
        params, state = ({k: v.clone().to(device) for k, v in resume[name].items()} for name in ("params", "optimizer"))
        first, logs = int(resume["step"]), {name: log.clone() for name, log in resume["logs"].items()}
    else:
        params = {k: p.to(device, dtype) for k, p in net.init(generator(seed, "init")).items()}
        params |= {k: p.to(device, dtype) for k, p in recipe.more(net, params).items()}
        trained = {k: p for k, p in params.items() if k not in net.still}
        state = {k: v.to(device) for k, v in recipe.optimizer(0).init(trained).items()}
        first, logs = 0, {}
    sampler = source.sampler(generator(seed, "unused"), device, dtype)
    # On a CPU most convolutions read channels last in half of the time. A step of ANML, which has a gate, takes 0.9
    # (float32) or 0.5 (bfloat16) of that time where its weights are contiguous.
    layout = torch.contiguous_format if net.gate else torch.channels_last
    params = {k: p.to(memory_format=layout) if p.dim() == 4 else p for k, p in params.items()}
    saved = looked = time.monotonic()
    unseen: list[dict[str, Tensor]] = []
    for step in range(first, recipe.steps):
        g = generator(seed, "episode", step)
        episode = recipe.draw(replace(sampler, g=g))
        if recipe.reset:
            with torch.no_grad():
                params = recipe.reset(net, params, episode, g)
        trained = {k: p for k, p in params.items() if k not in net.still}
        leaves = {k: p.detach().requires_grad_() for k, p in trained.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss, more = recipe.loss(net, params | leaves, episode)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {k: torch.zeros_like(p) if d is None else d for (k, p), d in zip(trained.items(), found, strict=True)}
        recipe.optimizer(step).update(trained, grads, state)
        unseen.append({"loss": loss.detach()} | {name: value.detach() for name, value in more.items()})
        if len(unseen) == CHECKED or step + 1 == recipe.steps or time.monotonic() - looked >= 1:
            looked = time.monotonic()
            _keep(logs, unseen, step + 1, recipe.steps)
            unseen = []
            _finite(params, f"after step {step + 1} of {recipe.steps}")
            tell((step + 1) / recipe.steps)
            if save and step + 1 < recipe.steps and time.monotonic() - saved >= save_every:
                save({"params": dict(params), "optimizer": dict(state), "step": step + 1,
                      "logs": {name: log.clone() for name, log in logs.items()}})
                saved = time.monotonic()
    if recipe.finish:
        with torch.no_grad():
            params = recipe.finish(net, params, replace(sampler, g=generator(seed, "finish")))
        _finite(params, "at the end")
    return {k: p.detach().contiguous().cpu() for k, p in params.items()}, logs


def _keep(logs: dict[str, Tensor], told: Sequence[Mapping[str, Tensor]], done: int, steps: int) -> None:
    """Writes what the last steps told into `logs`; Diverged where their loss is not finite."""
    for name in told[0]:
        log = logs.setdefault(name, torch.full((steps,), torch.nan))
        log[done - len(told):done] = torch.stack([one[name] for one in told]).float().cpu()
    bad = (~logs["loss"][done - len(told):done].isfinite()).nonzero()
    if len(bad):
        raise Diverged(f"its loss was no finite number at step {done - len(told) + int(bad[0]) + 1} of {steps}")


def _finite(params: Params, when: str) -> None:
    if bad := [k for k, p in params.items() if not bool(p.isfinite().all())]:
        raise Diverged(f"{bad[0]} was no finite number {when}")


def fresh(net: Net, params: Params, x: Tensor) -> Tensor:
    """Features while a start is learned: normalised by the batch's own statistics where the network has such."""
    if net.fresh:
        return net.fresh(params, x)[0]
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    return net.features(params, x)


def fresh_scores(net: Net, params: Params, x: Tensor) -> Tensor:
    """Scores while a start is learned, likewise."""
    return F.linear(fresh(net, params, x), *(params[k] for k in net.head)) if net.fresh else net.apply(params, x)


def settled(net: Net, params: Params, sampler: Sampler, batches: int = 50, size: int = 256) -> Params:
    """`params` with the statistics of batch normalisation: averages over random batches of the source.

    A recipe for networks that may have batch normalisation has it as `finish`; without such it changes nothing.
    """
    if net.fresh is None:
        return params
    every = [net.fresh(params, sampler.fetch(sampler.any(size))[0])[1] for _ in range(batches)]
    return params | {k: torch.stack([own[k] for own in every]).mean(0).to(params[k].dtype) for k in net.still}


# ---- by the nearest mean


def means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """The mean [way, F] of the features `z` [n, F] of each class; `y` [n] has at least one of every class."""
    shown = F.one_hot(y, way).to(z.dtype)
    return torch.einsum("nk,nf->kf", shown / shown.sum(0), z)


def closeness(z: Tensor, centres: Tensor) -> Tensor:
    """Scores [m, way] of features `z` [m, F]: minus the squared Euclidean distance to each of `centres` [way, F]."""
    return -(z.unsqueeze(1) - centres).square().sum(-1)


def by_distance(net: Net, params: Params, sampler: Sampler, each: int, tasks: int = 50) -> Params:
    """`params` with an output layer that scores by the distances to each class's mean, up to what all classes share.

    For a source of several domains: means are those of `each` examples, of random domains, `tasks` of them.
    """
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    shown = [sampler.fetch(sampler.task(sampler.source.n_classes, each))[0] for _ in range(tasks)]
    z = torch.stack([net.features(params, x.flatten(0, 1)).view(*x.shape[:2], -1).mean(1) for x in shown]).mean(0)
    weight, bias = net.head  # -|q - z|^2 = 2 q z - |z|^2 - |q|^2
    return params | {weight: (2 * z).to(params[weight].dtype), bias: -z.square().sum(1).to(params[bias].dtype)}


def nearest_mean(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
    """Scores [m, way] of queries: minus the squared distance of their features to the mean of each class shown."""
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    # In one batch, for a network that normalises by what it is shown.
    z = net.features(params, torch.cat([x, query]))
    z = z if z.dtype == torch.float64 else z.float()
    return closeness(z[len(x):], means(z[:len(x)], y, way))


# ---- written as strategies


def pretrained(adapt: str = "all") -> Callable[[Callable[..., Recipe]], Callable[..., Initialization]]:
    """Makes of a function that returns a `Recipe` the factory of a start, with these further hyper-parameters.

        file: of `lifelong pretrain`; None: the start is learned when a run first needs it, and kept in its store.
        source: what it is learned from, an expression; None: what the stream names.
        model: its network, an expression; None: the recipe's own, or that of `begin`.
        begin: file of another start with whose parameters learning begins; an output layer of other classes is drawn
            anew. None: everything is.
        adapt: what moves on the stream: 'head', 'ungated' (all but a gate) or 'all'.
        head: on the stream the output layer is drawn anew ('new'), begins at 0 ('zero': small steps on features of
            one length then end near the nearest mean), or is kept ('kept'); 'auto' keeps it where a start of several
            domains meets a domain-incremental stream with as many units, and else draws it anew.
        power: features are raised to this power, sign kept; 1/2 tames those that are large in a few classes.
        views: how many quarter turns of an image, each seen by the same network, have their features, each scaled to
            length 1, side by side; 1: the image as it is.
        length: features are scaled to this length before the output layer; 0: they are as they are.

    Args:
        adapt: the default.
    """
    def decorate(make: Callable[..., Recipe]) -> Callable[..., Initialization]:
        own = inspect.signature(make)
        common = {"file": (None, "str | None"), "source": (None, "str | None"), "model": (None, "str | None"),
                  "begin": (None, "str | None"), "adapt": (adapt, "str"), "head": ("auto", "str"),
                  "length": (0.0, "float"), "power": (1.0, "float"), "views": (1, "int")}
        more = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v, annotation=a)
                for k, (v, a) in common.items()]
        signature = own.replace(parameters=[*own.parameters.values(), *more], return_annotation="Initialization")

        @functools.wraps(make)
        def factory(*args: Any, **given: Any) -> Initialization:
            use = {k: given.pop(k, v) for k, (v, _) in common.items()}
            bounds.one_of("adapt", use["adapt"], ADAPT)
            bounds.one_of("head", use["head"], HEADS)
            bounds.at_least(0, length=use["length"])
            bounds.above(0, power=use["power"])
            bounds.one_of("views", str(use["views"]), "1234")
            return Initialization(_unlearned, recipe=make(*args, **given), use=use)

        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.pretrained = True  # type: ignore[attr-defined]
        return factory

    return decorate


def _unlearned(net: Net, seed: int) -> Params:
    raise ValueError("this start must be learned before it is used")
