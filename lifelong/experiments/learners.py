"""Makes the learners and lanes of specs; networks, installed starts and learners are made once per experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import nn

from lifelong.data.augment import NONE
from lifelong.data.stream import Stream
from lifelong.experiments.compose import compose
from lifelong.learning.imperative import Training, constructed, set_generators
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.schedule import Budget
from lifelong.machine import free
from lifelong.networks.mlp import mlp
from lifelong.networks.module import check_outputs, from_module
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.networks.precision import in_bfloat16
from lifelong.randomness import generator
from lifelong.spec import expression
from lifelong.spec.run import Options, Spec
from lifelong.starts.install import encoded, installed, only_head
from lifelong.starts.pretrain import Pretraining
from lifelong.starts.weights import Weights

T = TypeVar("T")


@dataclass
class Learners:
    """The learners of an experiment's specs, and the lanes that train them.

    Attributes:
        stream: the stream, made for the experiment's seeds.
        options: options, of which dtype and memory are used.
        budget: number of epochs or steps, and batch size.
        device: device of training.
        starts: by the start's expression, its learned weights, or the pretraining that will learn them.
        first: the stream's first seed.
        trial: whether steps are only tried: an untrained start replaces a learned one, and the features of one
            example replace those of all.
    """

    stream: Stream
    options: Options
    budget: Budget
    device: torch.device
    starts: dict[str, Weights | Pretraining]
    first: int = 0
    trial: bool = False
    _made: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    _made_on_starts: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def _once(self, spec: Spec, kind: str, name: str, make: Callable[[], T]) -> T:
        """The result of `make`, cached by kind and name; if it depends on a start, until the start changes."""
        kept = self._made_on_starts if spec.start_term else self._made
        if (kind, name) not in kept:
            kept[kind, name] = make()
        made: T = kept[kind, name]
        return made

    def forget_starts(self) -> None:
        """Drops everything that depends on a start, because a start has changed."""
        self._made_on_starts.clear()

    # ---- learners

    def made(self, spec: Spec) -> Any:
        """The learner of a spec, or the object of its first seed; None after `object` has returned that object."""
        return self._once(spec, "learner", spec.digest, partial(self._constructed, spec))[0]

    def learner(self, spec: Spec) -> Learner | None:
        """The learner of a spec; None if it is an object, because every seed has its own."""
        made = self.made(spec)
        return made if isinstance(made, Learner) else None

    def object(self, spec: Spec, seed: int) -> Any:
        """The object that learns one seed, built with the current state of the global generators."""
        kept = self._made_on_starts if spec.start_term else self._made
        if seed == self.first and (built := kept.get(("learner", spec.digest), (None, None)))[0] is not None:
            kept["learner", spec.digest] = None, None  # the key stays: this spec makes objects
            set_generators(built[1])
            return built[0]
        return self.make(spec, seed)({})

    def _constructed(self, spec: Spec) -> tuple[Any, dict[str, Any]]:
        return constructed(lambda: self.make(spec, self.first)({}), self.first)

    def make(self, spec: Spec, seed: int = 0) -> Callable[[Mapping[Any, Any]], Any]:
        """(values of real hyper-parameters) -> a new learner of a spec."""
        context = self.context(spec, seed)

        def make(hyper: Mapping[Any, Any]) -> Any:
            outer = {name: value for (place, name), value in hyper.items() if place == "optimizer"}
            inner = {key: value for key, value in hyper.items() if key[0] != "optimizer"}
            return compose(spec.terms, context, expression.build(spec.optimizer_term, context, **outer), inner)

        return make

    def context(self, spec: Spec, seed: int = 0) -> dict[str, Any]:
        """The values that a factory may request by name."""
        stream, start = self.installed(spec)
        training = Training(spec.optimizer_term, self.budget, stream.scenario == "task", self.dtype)
        facts = {"shape": stream.shape, "n_classes": stream.n_classes, "n_tasks": stream.n_tasks, "seed": seed,
                 "device": self.device, "training": training}
        if start:
            return facts | {"net": start.net, "start": start, "learned": start.learned}
        return facts | {"net": self._once(spec, "net", spec.model or "", partial(self._net, spec))}

    def _net(self, spec: Spec) -> Net:
        facts = {"shape": self.stream.shape, "n_classes": self.stream.n_classes, "n_tasks": self.stream.n_tasks}
        term = spec.model_term
        model = expression.build(term, facts)
        if isinstance(model, nn.Module):
            # Examples that are not scaled, such as tokens, cannot be random numbers.
            examples = (torch.randn(3, *self.stream.shape, generator=generator("examples"))
                        if self.stream.problem.scaled else self.stream.x[:3])
            model = from_module(lambda: expression.build(term, facts), examples, self.stream.n_classes)
        if not isinstance(model, Net):
            raise ValueError(f"{term.name} makes a {type(model).__name__}, not a torch module")
        if term.path:
            x = self.stream.pool().fetch(torch.arange(2))[0]
            check_outputs(model.apply(model.init(generator("outputs")), x), term.name, self.stream.n_classes)
        if model.still and model.train is None:
            raise ValueError(f"{term}: {model.still[0]} is moved by no gradient, and the network does not say "
                             "by what: give its Net a `train`, or use norm='group'")
        return self._precise(model)

    def _precise(self, net: Net) -> Net:
        return in_bfloat16(net) if self.options.dtype == "bfloat16" else net

    @property
    def dtype(self) -> torch.dtype:
        """Precision of parameters, examples and losses."""
        return torch.float64 if self.options.dtype == "float64" else torch.float32

    # ---- lanes

    def lanes(self, stack: Sequence[Spec], which: Sequence[int] | None = None) -> Lanes:
        """Lanes for every seed of every spec of a stack, spec by spec.

        Args:
            stack: specs that differ only in real-valued hyper-parameters.
            which: indices of the requested lanes; None for all.
        """
        n = self.stream.n_seeds
        which = range(len(stack) * n) if which is None else which
        keys = [key for key in stack[0].reals if len({spec.reals[key] for spec in stack}) > 1]
        by_values = {tuple(spec.reals[key] for key in keys): spec for spec in stack}

        def make(hyper: Mapping[Any, Any]) -> Any:
            if all(isinstance(value, float) for value in hyper.values()):
                return self.learner(by_values[tuple(hyper[key] for key in keys)])
            return self.make(stack[0])(hyper)

        hyper = {key: [stack[lane // n].reals[key] for lane in which] for key in keys}
        stream = self.installed(stack[0])[0]
        return Lanes(stream, range(self.first, self.first + n), [lane % n for lane in which], make, hyper, self.device,
                     self.dtype, stacked=len(which) > 1, host=self.host and stream.x is self.stream.x)

    @property
    def room(self) -> float:
        """Bytes that training may use on the device."""
        return 0.8 * free(self.device) if self.options.memory is None else self.options.memory * 2**30

    @cached_property
    def host(self) -> bool:
        """Whether the examples stay in the host's memory because they exceed half of the room on the device."""
        return self.device.type != "cpu" and self.stream.x.nbytes > self.room / 2

    @property
    def placed(self) -> str:
        """A sentence on where the examples are stored."""
        what = f"{len(self.stream.x):,} examples, {self.stream.x.nbytes / 2**30:.2g} GiB,"
        if not self.host:
            return f"{what} are on the {self.device.type} device"
        return (f"{what} stay in the host's memory, for the {self.device.type} device has room for "
                f"{self.room / 2**30:.2g}: batches are gathered ahead")

    # ---- starts

    def installed(self, spec: Spec) -> tuple[Stream, Initialization | None]:
        """The stream that a spec trains on, and its start, if it has a learned one.

        If only the output layer of a start is trained, the features of every example are computed once, and the stream
        is one of features.
        """
        if spec.start_term is None:
            return self.stream, None
        # The features of augmented images change at every step.
        pixels = self.stream.augment != NONE or self._once(spec, "pixels", spec.digest, partial(self._pixels, spec))
        name = f"{spec.start_term} {pixels}"
        return self._once(spec, "installed", name, partial(self._install, spec, pixels))

    def _pixels(self, spec: Spec) -> bool:
        """Whether some part needs the examples themselves, not their features."""
        context = {"shape": self.stream.shape, "n_classes": self.stream.n_classes, "n_tasks": self.stream.n_tasks,
                   "net": mlp(self.stream.shape, self.stream.n_classes)}
        parts = [expression.build(term, context) for term in spec.terms if not term.learned]
        return any(getattr(part, "pixels", False) for part in parts)

    def _install(self, spec: Spec, pixels: bool) -> tuple[Stream, Initialization]:
        term = spec.start_term
        assert term is not None
        stream, start, use = self.stream, self.starts[str(term)], term.resolved()
        weights = start if isinstance(start, Weights) else start.untrained()
        net = installed(weights, stream.shape, stream.n_classes, stream.scenario, adapt=use["adapt"],
                        head=use["head"], length=use["length"], power=use["power"], quarter_turns=use["quarter_turns"],
                        device=self.device, dtype=self.dtype)
        beside = set(weights.params) - set(shapes_of(weights.net(stream.n_classes)))
        if use["length"] or use["power"] != 1 or use["quarter_turns"] != 1:
            beside = set()  # it was learned for features without these transformations
        if only_head(net) and stream.warp is None and not pixels:
            rows = torch.cat([stream.train.flatten(), stream.test.flatten()])
            used = torch.unique(rows[rows >= 0] % len(stream.y))[:1 if self.trial else None]
            x = encoded(net, stream.pool(self.device, self.dtype, self.host), used).cpu()
            stream = replace(stream, x=x, shape=tuple(x.shape[1:]), scale=1.0, mean=None, std=None)
            net = _line(stream, net)
        return stream, Initialization(lambda net, seed: net.init(generator(seed, "init")), net=self._precise(net),
                                      learned={k: weights.params[k].to(self.device) for k in sorted(beside)})


def _line(stream: Stream, net: Net) -> Net:
    """A linear layer on a stream of features, initialised as the output layer of `net`."""
    line = mlp(stream.shape, stream.n_classes, ())

    def init(g: torch.Generator) -> Params:
        params = net.init(g)
        return {name: params[own] for name, own in zip(line.head, net.head, strict=True)}

    return line._replace(init=init)
