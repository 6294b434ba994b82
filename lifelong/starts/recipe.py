"""Recipes of starts, and the outer loop that learns a start by gradient descent on a recipe's objective."""

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
    """How the parameters of a start are learned: gradient descent on an objective, one random episode per step.

    Attributes:
        model: the default network, an expression.
        steps: number of steps, 1 or more.
        draw: (sampler) -> episode, a dict of tensors.
        loss: (net, params, episode) -> the objective, 0-d and differentiable in `params`, and a dict of further 0-d
            values to log at this step, such as the accuracy.
        optimizer: (step) -> the optimizer of that step; a step size that changes is built here.
        reset: (net, params, episode, g) -> params with some of them drawn anew before the step, as OML does with the
            output rows of an episode's classes.
        extra_params: (net, params) -> further parameters to learn, for example step sizes.
        finish: (net, params, sampler) -> params, called once after the last step, for example to set the statistics
            of batch normalisation.
        answer: (net, params, x [n, *shape], y [n], query [m, *shape], way) -> scores [m, way] of queries, given an
            equal number of support examples `x` of each of `way` new classes, class by class. Few-shot evaluation
            applies `torch.vmap` to it. None: the nearest class mean of the features.
        units: (source) -> number of output units while the start is learned.
        full_precision: whether the recipe cannot be learned in bfloat16, for example because torch has no bfloat16
            gradients of convolutions under `torch.vmap`.
    """

    model: str
    steps: int
    draw: Callable[[Sampler], Episode]
    loss: Callable[[Net, Params, Episode], tuple[Tensor, dict[str, Tensor]]]
    optimizer: Callable[[int], Optimizer]
    reset: Callable[[Net, Params, Episode, torch.Generator], Params] | None = None
    extra_params: Callable[[Net, Params], Params] = lambda net, params: {}
    finish: Callable[[Net, Params, Sampler], Params] | None = None
    answer: Callable[[Net, Params, Tensor, Tensor, Tensor, int], Tensor] | None = None
    units: Callable[[Source], int] = lambda source: source.n_classes
    full_precision: bool = False

    def __post_init__(self) -> None:
        bounds.at_least(1, steps=self.steps)


class Diverged(RuntimeError):
    """A loss or a parameter of a start became NaN or infinite while it was learned."""


# ---- learning


CHECKED = 50  # losses and parameters are checked after this many steps, or after a second


def learn(recipe: Recipe, net: Net, source: Source, *, seed: int = 0, device: torch.device | str = "cpu",
          precision: str = "float32", save: Callable[[dict[str, Any]], None] | None = None, save_every: float = 30.0,
          progress: Callable[[float], None] = lambda share: None,
          resume: Mapping[str, Any] | None = None) -> tuple[Params, dict[str, Tensor]]:
    """Learns a start by its recipe.

    Args:
        recipe: the recipe.
        net: the network whose parameters are learned.
        source: the data.
        seed: seed of all random numbers.
        device: where it is learned.
        precision: 'float32'; 'bfloat16', which applies to matrix products and convolutions only; or 'float64'.
        save: called with a checkpoint every `save_every` seconds. The next step overwrites the checkpoint's tensors.
        save_every: seconds between checkpoints.
        progress: called with the share of the steps done, from 0 to 1.
        resume: a checkpoint to continue from; the result is the same, bit for bit, as without the interruption.

    Returns:
        The parameters, on the CPU, and the logs [steps] by name: 'loss' and what the recipe's loss logs.

    Raises:
        Diverged: a loss or a parameter is not finite.
    """
    device = torch.device(device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    params, state, first, logs = _resumed(resume, device) if resume else _begun(recipe, net, seed, device, dtype)
    sampler = source.sampler(generator(seed, "unused"), device, dtype)
    # On a CPU most convolutions read channels last in half of the time. A step of ANML, which has a gate, takes 0.9
    # (float32) or 0.5 (bfloat16) of that time where its weights are contiguous.
    layout = torch.contiguous_format if net.gate else torch.channels_last
    params = {k: p.to(memory_format=layout) if p.dim() == 4 else p for k, p in params.items()}
    saved = checked = time.monotonic()
    unchecked: list[dict[str, Tensor]] = []
    for step in range(first, recipe.steps):
        params, values = _step(recipe, net, params, state, sampler, seed, step, precision)
        unchecked.append(values)
        if len(unchecked) == CHECKED or step + 1 == recipe.steps or time.monotonic() - checked >= 1:
            checked = time.monotonic()
            _log(logs, unchecked, step + 1, recipe.steps)
            unchecked = []
            _check_finite(params, f"after step {step + 1} of {recipe.steps}")
            progress((step + 1) / recipe.steps)
            if save and step + 1 < recipe.steps and time.monotonic() - saved >= save_every:
                save({"params": dict(params), "optimizer": dict(state), "step": step + 1,
                      "logs": {name: log.clone() for name, log in logs.items()}})
                saved = time.monotonic()
    if recipe.finish:
        with torch.no_grad():
            params = recipe.finish(net, params, replace(sampler, g=generator(seed, "finish")))
        _check_finite(params, "after the last step")
    return {k: p.detach().contiguous().cpu() for k, p in params.items()}, logs


def _begun(recipe: Recipe, net: Net, seed: int, device: torch.device,
           dtype: torch.dtype) -> tuple[Params, Params, int, dict[str, Tensor]]:
    """Parameters, optimizer state, first step and logs of a start that is learned from the beginning."""
    params = {k: p.to(device, dtype) for k, p in net.init(generator(seed, "init")).items()}
    params |= {k: p.to(device, dtype) for k, p in recipe.extra_params(net, params).items()}
    trained = {k: p for k, p in params.items() if k not in net.still}
    return params, {k: v.to(device) for k, v in recipe.optimizer(0).init(trained).items()}, 0, {}


def _resumed(checkpoint: Mapping[str, Any], device: torch.device) -> tuple[Params, Params, int, dict[str, Tensor]]:
    """Parameters, optimizer state, first step and logs from a checkpoint."""
    params, state = ({k: v.clone().to(device) for k, v in checkpoint[name].items()} for name in ("params", "optimizer"))
    return params, state, int(checkpoint["step"]), {name: log.clone() for name, log in checkpoint["logs"].items()}


def _step(recipe: Recipe, net: Net, params: Params, state: Params, sampler: Sampler, seed: int, step: int,
          precision: str) -> tuple[Params, dict[str, Tensor]]:
    """The parameters after one step, and its loss and logs; the optimizer writes into `params` and `state`."""
    g = generator(seed, "episode", step)
    episode = recipe.draw(replace(sampler, g=g))
    if recipe.reset:
        with torch.no_grad():
            params = recipe.reset(net, params, episode, g)
    trained = {k: p for k, p in params.items() if k not in net.still}
    leaves = {k: p.detach().requires_grad_() for k, p in trained.items()}
    with torch.autocast(sampler.pool.y.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss, logged = recipe.loss(net, params | leaves, episode)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    grads = {k: torch.zeros_like(p) if d is None else d for (k, p), d in zip(trained.items(), found, strict=True)}
    recipe.optimizer(step).update(trained, grads, state)
    return params, {"loss": loss.detach()} | {name: value.detach() for name, value in logged.items()}


def _log(logs: dict[str, Tensor], values: Sequence[Mapping[str, Tensor]], done: int, steps: int) -> None:
    """Writes the values of the last steps into `logs`; raises Diverged if one of their losses is not finite."""
    for name in values[0]:
        log = logs.setdefault(name, torch.full((steps,), torch.nan))
        log[done - len(values):done] = torch.stack([value[name] for value in values]).float().cpu()
    bad = (~logs["loss"][done - len(values):done].isfinite()).nonzero()
    if len(bad):
        raise Diverged(f"the loss was not finite at step {done - len(values) + int(bad[0]) + 1} of {steps}")


def _check_finite(params: Params, when: str) -> None:
    if bad := [k for k, p in params.items() if not bool(p.isfinite().all())]:
        raise Diverged(f"{bad[0]} was not finite {when}")


def episode_features(net: Net, params: Params, x: Tensor) -> Tensor:
    """Features [n, F] of `x` while a start is learned.

    Batch normalisation uses the statistics of the batch `x`, not the running ones.
    """
    if net.fresh:
        return net.fresh(params, x)[0]
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    return net.features(params, x)


def episode_scores(net: Net, params: Params, x: Tensor) -> Tensor:
    """Scores [n, C] of `x` while a start is learned; batch normalisation uses the statistics of the batch `x`."""
    if net.fresh:
        return F.linear(episode_features(net, params, x), *(params[k] for k in net.head))
    return net.apply(params, x)


def set_statistics(net: Net, params: Params, sampler: Sampler, batches: int = 50, size: int = 256) -> Params:
    """`params` with running statistics of batch normalisation, averaged over random batches of the source.

    Use it as the `finish` of a recipe whose network may have batch normalisation; it changes nothing otherwise.

    Args:
        net: the network.
        params: its parameters.
        sampler: draws the batches.
        batches: how many.
        size: examples in each.
    """
    if net.fresh is None:
        return params
    statistics = [net.fresh(params, sampler.fetch(sampler.any_rows(size))[0])[1] for _ in range(batches)]
    return params | {k: torch.stack([batch[k] for batch in statistics]).mean(0).to(params[k].dtype) for k in net.still}


# ---- by the nearest mean


def class_means(z: Tensor, y: Tensor, way: int) -> Tensor:
    """The mean feature of each class, [way, F], from features `z` [n, F] and classes `y` [n], at least one of each."""
    member = F.one_hot(y, way).to(z.dtype)
    return torch.einsum("nk,nf->kf", member / member.sum(0), z)


def distance_scores(z: Tensor, centres: Tensor) -> Tensor:
    """Scores [m, way] of features `z` [m, F]: minus the squared Euclidean distance to each of `centres` [way, F]."""
    return -(z.unsqueeze(1) - centres).square().sum(-1)


def head_of_distances(net: Net, params: Params, sampler: Sampler, examples: int, tasks: int = 50) -> Params:
    """`params` with an output layer whose softmax is that of minus the squared distances to the class means.

    For sources of several domains, whose classes have fixed units: a class mean is averaged over `tasks` random
    domains, `examples` examples in each.
    """
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    batches = [sampler.fetch(sampler.task(sampler.source.n_classes, examples))[0] for _ in range(tasks)]
    z = torch.stack([net.features(params, x.flatten(0, 1)).view(*x.shape[:2], -1).mean(1) for x in batches]).mean(0)
    weight, bias = net.head  # -|q - z|^2 = 2 q z - |z|^2 - |q|^2, and the last term is the same for all classes
    return params | {weight: (2 * z).to(params[weight].dtype), bias: -z.square().sum(1).to(params[bias].dtype)}


def nearest_mean(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
    """Scores [m, way] of queries: minus the squared distance of a query's features to the mean of each class.

    Args:
        net: the network.
        params: its parameters.
        x: support examples [n, *shape].
        y: their classes [n], each of 0..way-1 at least once.
        query: queries [m, *shape].
        way: number of classes.
    """
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    # One batch, for networks that normalise by the batch.
    z = net.features(params, torch.cat([x, query]))
    z = z if z.dtype == torch.float64 else z.float()
    return distance_scores(z[len(x):], class_means(z[:len(x)], y, way))


# ---- written as strategies


def pretrained(adapt: str = "all") -> Callable[[Callable[..., Recipe]], Callable[..., Initialization]]:
    """A decorator that turns a function returning a `Recipe` into the factory of a start.

    The start has the function's hyper-parameters and these:

        file: a file of `lifelong pretrain`; None learns the start when a run first needs it and keeps it in the store.
        source: the source that it is learned from, an expression; None takes the one that the stream names.
        model: its network, an expression; None takes the recipe's, or that of `begin`.
        begin: file of another start whose parameters it is initialised with. Its output layer is initialised at random
            if that start was learned on other classes. None initialises all parameters at random.
        adapt: the parameters that are trained on the stream: 'head' (the output layer), 'ungated' (all but a gate) or
            'all'.
        head: the output layer on the stream: 'new' is initialised at random, 'zero' at 0 (small steps on features of
            one length then end near the nearest mean), 'kept' is kept; 'auto' keeps it if a start of several domains
            meets a domain-incremental stream with as many units, and initialises it at random otherwise.
        power: features are raised to this power, keeping their sign; 1/2 reduces those that are large in few classes.
        quarter_turns: number of rotations of the image by 90 degrees, 1 to 4, whose features are concatenated, each
            scaled to length 1; 1 uses the image alone.
        length: features are scaled to this length before the output layer; 0 leaves them as they are.

    Args:
        adapt: the default of the hyper-parameter `adapt`.
    """
    def decorate(make: Callable[..., Recipe]) -> Callable[..., Initialization]:
        recipe_signature = inspect.signature(make)
        common = {"file": (None, "str | None"), "source": (None, "str | None"), "model": (None, "str | None"),
                  "begin": (None, "str | None"), "adapt": (adapt, "str"), "head": ("auto", "str"),
                  "length": (0.0, "float"), "power": (1.0, "float"), "quarter_turns": (1, "int")}
        added = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=v, annotation=a)
                 for k, (v, a) in common.items()]
        signature = recipe_signature.replace(parameters=[*recipe_signature.parameters.values(), *added],
                                             return_annotation="Initialization")

        @functools.wraps(make)
        def factory(*args: Any, **given: Any) -> Initialization:
            use = {k: given.pop(k, v) for k, (v, _) in common.items()}
            bounds.one_of("adapt", use["adapt"], ADAPT)
            bounds.one_of("head", use["head"], HEADS)
            bounds.at_least(0, length=use["length"])
            bounds.above(0, power=use["power"])
            bounds.one_of("quarter_turns", str(use["quarter_turns"]), "1234")
            return Initialization(_unlearned, recipe=make(*args, **given), use=use)

        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.pretrained = True  # type: ignore[attr-defined]
        return factory

    return decorate


def _unlearned(net: Net, seed: int) -> Params:
    raise ValueError("this start must be learned before it is used")
