"""Starts that were learned: what they are learned from, how, and the files that keep them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as packed
from torch import Tensor

from lifelong import registry, store
from lifelong.learner import Initialization
from lifelong.models import Net, Params, mlp
from lifelong.optim import Optimizer
from lifelong.randomness import generator
from lifelong.stream import Pool
from lifelong.views import turned

FORMAT = 1
ADAPT = ("head", "ungated", "all")
HEADS = ("auto", "new", "zero", "kept")


@dataclass(frozen=True)
class Source:
    """What a start is learned from: examples by class, in one domain or in several that share their classes.

    Attributes:
        name: with its version.
        x, y: examples [N, *shape] (or [N, D + 1] with `warp`) and their classes [N], as a `Pool` has them.
        rows: [G, K, n] rows of the pool: n examples of each of K classes, in each of G domains.
        shape, scale, warp [V, D], label [V, K]: see `Pool`.
        content: names of what it shows; a stream that tests on any of these is refused.
        options: the arguments that made it, JSON values.
    """

    name: str
    x: Tensor
    y: Tensor
    rows: Tensor
    shape: tuple[int, ...]
    scale: float = 1.0
    warp: Tensor | None = None
    label: Tensor | None = None
    content: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Output units that tell all of its classes apart, K."""
        return self.rows.shape[1]

    @property
    def domains(self) -> int:
        """Domains, G."""
        return self.rows.shape[0]

    def sampler(self, g: torch.Generator, device: torch.device | str = "cpu",
                dtype: torch.dtype = torch.float32) -> Sampler:
        """What draws from it with the random numbers of `g`."""
        own = {name: value.to(device) for name, value in (("warp", self.warp), ("label", self.label))
               if value is not None}
        classes = torch.ones(1, self.n_classes, dtype=torch.bool, device=device)
        pool = Pool(self.x.to(device), self.y.to(device), self.shape, classes, scale=self.scale, dtype=dtype)
        return Sampler(self, pool.lane(own), g)


@dataclass(frozen=True)
class Sampler:
    """Draws classes and examples of a source.

    Attributes:
        source: what is drawn from.
        pool: its examples, on the device.
        g: random numbers, on the CPU.
    """

    source: Source
    pool: Pool
    g: torch.Generator

    def fetch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Examples [*rows.shape, *shape] and their output units, of `rows` of any shape."""
        x, y = self.pool.fetch(rows.flatten().to(self.pool.y.device))
        return x.view(*rows.shape, *x.shape[1:]), y.view(rows.shape)

    def way(self, count: int, each: int) -> Tensor:
        """Rows [count, each]: of `count` classes of one domain, `each` different examples, all in random order.

        Raises:
            ValueError: where the source has fewer classes, or fewer examples of a class.
        """
        rows = self.source.rows
        domain = int(torch.randint(len(rows), (), generator=self.g))
        if count > rows.shape[1]:
            raise ValueError(f"{count} classes are asked for, but {self.source.name} has {rows.shape[1]}")
        chosen = rows[domain, torch.randperm(rows.shape[1], generator=self.g)[:count]]
        return self.some(chosen, each)

    def task(self, way: int, each: int) -> Tensor:
        """Rows [K, each] of a few-shot task, and a row's place is its unit: `way` classes in random order, or, of a
        source of several domains, all classes of one in their own order, for there they have units that stay.

        Raises:
            ValueError: where the source has fewer classes, or fewer examples of a class.
        """
        if self.source.domains == 1:
            return self.way(way, each)
        return self.some(self.source.rows[int(torch.randint(self.source.domains, (), generator=self.g))], each)

    def episode(self, way: int, shots: int, queries: int) -> Episode:
        """A few-shot task: `x`, the shots of all classes and then the queries; their units, `y` and `asked`."""
        x, _ = self.fetch(self.task(way, shots + queries))
        units = torch.arange(len(x), device=x.device)
        return {"x": torch.cat([x[:, :shots].flatten(0, 1), x[:, shots:].flatten(0, 1)]),
                "y": units.repeat_interleave(shots), "asked": units.repeat_interleave(queries)}

    def some(self, rows: Tensor, each: int) -> Tensor:
        """Of `rows` [C, n] of C classes, `each` different ones of every class in random order, [C, each].

        Raises:
            ValueError: where a class has fewer.
        """
        if each > rows.shape[1]:
            raise ValueError(f"{each} images of a class are asked for, but {self.source.name} has {rows.shape[1]}")
        order = torch.rand(rows.shape, generator=self.g).argsort(1)[:, :each]
        return rows.gather(1, order)

    def any(self, count: int, among: Tensor | None = None) -> Tensor:
        """`count` different rows of `among`, or of all there are (or with repetitions where there are fewer)."""
        every = (self.source.rows if among is None else among).flatten()
        if count > len(every):
            return every[torch.randint(len(every), (count,), generator=self.g)]
        if count**2 > len(every):
            return every[torch.randperm(len(every), generator=self.g)[:count]]
        # A permutation of 19,280 takes longer than drawing again in the rare case of a repetition.
        picks = torch.randint(len(every), (count,), generator=self.g)
        while len(set(picks.tolist())) < count:
            picks = torch.randint(len(every), (count,), generator=self.g)
        return every[picks]


Episode = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How the parameters of a start are learned: step after step down the gradient of an episode's objective.

    Attributes:
        model: the network that it is meant for, an expression.
        steps: how many.
        draw: (sampler) -> episode, a dict of tensors.
        loss: (net, params, episode) -> 0-d objective, logs (0-d each); differentiable in `params`.
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
        registry.at_least(1, steps=self.steps)


class Diverged(RuntimeError):
    """The outer loop met a loss that is not finite; the sentence names the last good checkpoint."""


@dataclass(frozen=True)
class Weights:
    """A learned start.

    Attributes:
        params: by name.
        about: what it was learned from, how, and by which version; JSON values.
    """

    params: Params
    about: Mapping[str, Any]

    def net(self, n_classes: int) -> Net:
        """Its network with `n_classes` output units."""
        return network(self.about["model"], tuple(self.about["shape"]), n_classes)


def network(model: str, shape: tuple[int, ...], n_classes: int) -> Net:
    """The network of an expression; ValueError where it makes something else."""
    terms = registry.parse(model, "models")
    net = registry.build(terms[0], {"shape": shape, "n_classes": n_classes})
    if not isinstance(net, Net):
        raise ValueError(f"{model}: a start needs a Net, and this makes a {type(net).__name__}")
    return net


# ---- learning


CHECKED = 50  # steps after which the losses are looked at, and which a damaged loss may be late by


def learn(recipe: Recipe, net: Net, source: Source, *, seed: int = 0, device: torch.device | str = "cpu",
          precision: str = "float32", save: Callable[[dict[str, Any]], None] | None = None, save_every: float = 30.0,
          tell: Callable[[float], None] = lambda share: None,
          resume: Mapping[str, Any] | None = None) -> tuple[Params, Tensor]:
    """Learns a start; the parameters, and the losses [steps].

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
        Diverged: where a loss is not finite.
    """
    device = torch.device(device)
    dtype = torch.float64 if precision == "float64" else torch.float32
    if resume:
        params, state = ({k: v.clone().to(device) for k, v in resume[name].items()} for name in ("params", "optimizer"))
        first, losses = int(resume["step"]), resume["losses"].clone()
    else:
        params = {k: p.to(device, dtype) for k, p in net.init(generator(seed, "init")).items()}
        params |= {k: p.to(device, dtype) for k, p in recipe.more(net, params).items()}
        trained = {k: p for k, p in params.items() if k not in net.still}
        state = {k: v.to(device) for k, v in recipe.optimizer(0).init(trained).items()}
        first, losses = 0, torch.full((recipe.steps,), torch.nan)
    sampler = source.sampler(generator(seed, "unused"), device, dtype)
    # Most convolutions read channels last in half of the time.
    params = {k: p.to(memory_format=net.layout) if p.dim() == 4 else p for k, p in params.items()}
    saved, unseen = time.monotonic(), []
    for step in range(first, recipe.steps):
        g = generator(seed, "episode", step)
        episode = recipe.draw(replace(sampler, g=g))
        if recipe.reset:
            with torch.no_grad():
                params = recipe.reset(net, params, episode, g)
        trained = {k: p for k, p in params.items() if k not in net.still}
        leaves = {k: p.detach().requires_grad_() for k, p in trained.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            loss, _ = recipe.loss(net, params | leaves, episode)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        grads = {k: torch.zeros_like(p) if d is None else d for (k, p), d in zip(trained.items(), found, strict=True)}
        recipe.optimizer(step).update(trained, grads, state)
        unseen.append(loss.detach())
        if len(unseen) == CHECKED or step + 1 == recipe.steps:
            losses[step + 1 - len(unseen):step + 1] = torch.stack(unseen).float().cpu()
            unseen = []
            if not bool(losses[:step + 1].isfinite().all()):
                bad = int((~losses[:step + 1].isfinite()).nonzero()[0])
                raise Diverged(f"its loss was no finite number at step {bad + 1} of {recipe.steps}")
            tell((step + 1) / recipe.steps)
            if save and step + 1 < recipe.steps and time.monotonic() - saved >= save_every:
                save({"params": dict(params), "optimizer": dict(state), "step": step + 1, "losses": losses.clone()})
                saved = time.monotonic()
    if recipe.finish:
        with torch.no_grad():
            params = recipe.finish(net, params, replace(sampler, g=generator(seed, "finish")))
    return {k: p.detach().contiguous().cpu() for k, p in params.items()}, losses


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


def nearest_mean(net: Net, params: Params, x: Tensor, y: Tensor, query: Tensor, way: int) -> Tensor:
    """Scores [m, way] of queries: minus the squared distance of their features to the mean of each class shown."""
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    # In one batch, for a network that normalises by what it is shown.
    z = net.features(params, torch.cat([x, query]))
    z = z if z.dtype == torch.float64 else z.float()
    return closeness(z[len(x):], means(z[:len(x)], y, way))


# ---- files


def save(path: Path, weights: Weights) -> None:
    """Writes a start's file, whole or not at all.

    Raises:
        StoreError: where that cannot be done.
    """
    about = dict(weights.about) | {"format": FORMAT, "sha256": checksum(weights.params)}
    params = {k: p.contiguous() for k, p in weights.params.items()}
    store.write(path, packed(params, {"lifelong": json.dumps(about, allow_nan=False)}))


def load(path: Path) -> Weights:
    """The start in a file.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no start's, or is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: make it with `lifelong pretrain SOURCE START --out {path}`")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("lifelong", "null"))
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no start ({error}); move it away and make it anew with `lifelong "
                         "pretrain`") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path} holds weights, but not those of a start of this version of lifelong: make it with "
                         "`lifelong pretrain`")
    if about.get("sha256") != checksum(params):
        raise ValueError(f"{path} is damaged (its weights are not those that were written); move it away and make it "
                         "anew with `lifelong pretrain`")
    return Weights(params, about)


def checksum(params: Params) -> str:
    """sha256 of parameters: their names, kinds, shapes and bytes."""
    content = hashlib.sha256()
    for name in sorted(params):
        p = params[name].contiguous()
        content.update(f"{name}{p.dtype}{tuple(p.shape)}".encode())
        content.update(p.flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def begun(net: Net, weights: Weights, known: bool) -> Net:
    """`net` with parameters that begin as those of another start.

    Args:
        known: whether that was learned on the same classes; else the output layer is drawn anew.

    Raises:
        ValueError: where its network is another.
    """
    example = net.init(generator(0, "init"))
    taken = {k: weights.params[k] for k, p in example.items()
             if k in weights.params and weights.params[k].shape == p.shape}
    missing = [k for k in example if k not in taken and k not in net.head]
    if missing:
        raise ValueError(f"learning cannot begin with {weights.about['start']}, which is of {weights.about['model']}: "
                         f"it has no {missing[0]} of shape {tuple(example[missing[0]].shape)}")
    if not known or any(k not in taken for k in net.head):
        taken = {k: p for k, p in taken.items() if k not in net.head}
    return net._replace(init=lambda g: net.init(g) | {k: p.clone() for k, p in taken.items()})


# ---- in use


def installed(weights: Weights, shape: tuple[int, ...], n_classes: int, scenario: str, *, adapt: str = "all",
              head: str = "auto", length: float = 0.0, power: float = 1.0, views: int = 1,
              device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Net:
    """The network that learning goes on with: its parameters are those that move, never `Net.still`, and nothing else.

    Args:
        weights: a learned start.
        shape: of the stream's examples.
        n_classes: output units on the stream.
        scenario: of the stream; a start of several domains keeps its output layer on a domain-incremental stream.
        adapt: 'head', 'ungated' (all but a gate) or 'all': what moves.
        head: 'new' draws the output layer anew, 'zero' has it begin at 0, 'kept' keeps it, 'auto' keeps it where the
            classes can be the same and else draws it anew.
        length: features are scaled to this length; 0: they are as they are.
        power: of features, first, with their sign.
        views: quarter turns of an image whose features, each of length 1, stand side by side; 1: the image's alone.
        device, dtype: of what does not move.

    Raises:
        ValueError: where the start does not fit the stream.
    """
    name, about = weights.about["start"], weights.about
    if tuple(about["shape"]) != tuple(shape):
        raise ValueError(f"{name} was learned on examples of shape {tuple(about['shape'])}, and the stream's are of "
                         f"shape {tuple(shape)}")
    net = weights.net(n_classes)
    same = about["units"] == n_classes
    if head == "kept" and not same:
        raise ValueError(f"{name} has {about['units']} output units and the stream needs {n_classes}: its output layer "
                         "cannot be kept; use head='new'")
    seen = views > 1 or power != 1
    if seen and (adapt != "head" or head == "kept"):
        raise ValueError("power and views are for a new output layer on features that stay as they are: adapt='head', "
                         "head='new'")
    if views > 1 and (len(shape) != 3 or shape[1] != shape[2]):
        raise ValueError(f"views={views} turns square images, and the stream's are of shape {tuple(shape)}")
    kept = head == "kept" or (head == "auto" and about["domains"] > 1 and scenario == "domain" and same and not seen)
    loaded = {k: p.to(device, dtype) for k, p in weights.params.items()}
    example = net.init(generator(0, "init"))
    for k, p in example.items():
        if k not in net.head and (k not in loaded or loaded[k].shape != p.shape):
            raise ValueError(f"{name} does not fit {about['model']}: {k} should be {tuple(p.shape)}, and "
                             + (f"is {tuple(loaded[k].shape)}" if k in loaded else "is missing"))
    moving = [k for k in example if _moves(k, net, adapt)]
    still = {k: loaded[k] for k in example if k not in moving}

    def init(g: torch.Generator) -> Params:
        fresh = net.init(g)
        if views > 1:
            fresh |= mlp((views * fresh[net.head[0]].shape[1],), n_classes, ()).init(g)
        if head == "zero":
            fresh |= {k: torch.zeros_like(fresh[k]) for k in net.head}
        return {k: fresh[k] if k in net.head and not kept else loaded[k].to("cpu").to(fresh[k].dtype) for k in moving}

    def features(params: Params, x: Tensor) -> Tensor:
        if net.features is None:
            raise ValueError(f"{about['model']} does not say what its features are")
        own = [_raised(net.features(still | params, turned(x, quarters)), power) for quarters in range(views)]
        z = torch.cat([F.normalize(one, dim=-1) for one in own], -1) if views > 1 else own[0]
        return length * F.normalize(z, dim=-1) if length else z

    def apply(params: Params, x: Tensor) -> Tensor:
        if not length and not seen:
            return net.apply(still | params, x)
        return F.linear(features(params, x), *((still | params)[k] for k in net.head))

    return net._replace(init=init, apply=apply, features=features if net.features else None,
                        vjp=None if still or length else net.vjp, fresh=None, still=(), train=None)


def _raised(z: Tensor, power: float) -> Tensor:
    return z if power == 1 else z.sign() * z.abs()**power


def _moves(name: str, net: Net, adapt: str) -> bool:
    return name not in net.still and {"all": True, "head": name in net.head,
                                      "ungated": not name.startswith("gate")}[adapt]


def only_head(net: Net) -> bool:
    """Whether nothing of an installed network moves but a linear layer on its features."""
    return net.features is not None and set(net.init(generator(0, "init"))) == set(net.head)


@torch.no_grad()
def encoded(net: Net, pool: Pool, used: Tensor | None = None, at_once: int = 512) -> Tensor:
    """Features [N, F] of every example of a pool without warps, computed once; of those that are not `used`, zeros."""
    if net.features is None:
        raise ValueError("this network does not say what its features are")
    used = torch.arange(len(pool.y)) if used is None else used
    parts = [net.features({}, pool.fetch(rows)[0]) for rows in used.to(pool.y.device).split(at_once)]
    z = parts[0].new_zeros(len(pool.y), *parts[0].shape[1:])
    return z.index_copy_(0, used.to(z.device), torch.cat(parts))


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
            registry.one_of("adapt", use["adapt"], ADAPT)
            registry.one_of("head", use["head"], HEADS)
            registry.at_least(0, length=use["length"])
            registry.above(0, power=use["power"])
            registry.one_of("views", str(use["views"]), "1234")
            return Initialization(_unlearned, recipe=make(*args, **given), use=use)

        factory.__signature__ = signature  # type: ignore[attr-defined]
        factory.pretrained = True  # type: ignore[attr-defined]
        return factory

    return decorate


def _unlearned(net: Net, seed: int) -> Params:
    raise ValueError("this start must be learned before it is used")
