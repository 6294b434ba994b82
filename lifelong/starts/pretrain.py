"""Pretraining of a start: found in a file or a store if it was learned before, learned or resumed otherwise."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lifelong import store
from lifelong.data.source import Source
from lifelong.learning.learner import Initialization
from lifelong.progress import Watcher
from lifelong.provenance import commit, environment
from lifelong.randomness import generator
from lifelong.spec import catalogue, expression, plugins
from lifelong.spec.expression import Term
from lifelong.spec.run import OptionError, one_of
from lifelong.starts.recipe import Diverged, learn
from lifelong.starts.weights import Weights, begun, load, network, save
from lifelong.store.checkpoints import Workshop
from lifelong.version import __version__

# Hyper-parameters of how a start is used on a stream, and all that are not hyper-parameters of the recipe.
USE = ("adapt", "head", "length", "power", "quarter_turns")
NOT_OF_RECIPE = ("file", "source", "begin", "model", *USE)


def parse(text: str) -> Term:
    """The term of an expression that names one learned start.

    Raises:
        LookupError: an unknown name.
        ValueError: the expression is not one learned start, or a hyper-parameter has a list of values.
    """
    terms = expression.parse(text)
    if len(terms) > 1 or not terms[0].learned:
        raise ValueError(f"{text!r} is not a learned start; choose one of {', '.join(_learned())}")
    if lists := [k for k, v in terms[0].given.items() if isinstance(v, list)]:
        raise ValueError(f"{terms[0].name}: {lists[0]} takes one value, not a list; learn each start separately")
    return terms[0]


def _learned() -> list[str]:
    known = catalogue.catalogue("starts")
    return [name for name in known if getattr(catalogue.lookup("starts", name), "pretrained", False)]


def make_source(text: str, data: str | None = None) -> Source:
    """The source of an expression such as `omniglot(size=84)`.

    Args:
        text: the expression.
        data: folder of the data, for sources that read files.

    Raises:
        LookupError: an unknown source or option.
        ValueError, FileNotFoundError: an error that the source raises.
    """
    terms = expression.parse(text, "sources")
    if len(terms) > 1 or any(isinstance(v, list) for v in terms[0].given.values()):
        raise ValueError(f"{text!r} names several sources, but a start is learned from one")
    source = expression.build(terms[0], {"data": data})
    if not isinstance(source, Source):
        raise ValueError(f"{terms[0].name} makes a {type(source).__name__}, not a Source")
    file = terms[0].path
    return replace(source, options={**source.options, "file": plugins.file_digest(file)[:10]}) if file else source


def from_file(term: Term) -> Weights | None:
    """The start in the file that a term names, or None if it names no file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds another start than the term describes.
    """
    file = term.resolved()["file"]
    if file is None:
        return None
    weights = load(Path(file))
    about = weights.about
    if about["start"] != term.name:
        raise ValueError(f"{file} holds a start {about['start']}, not {term.name}: write {about['start']}(file=...)")
    learned = {**about.get("hyper", {}), "model": about["model"]}
    for key, value in term.given.items():
        if key not in ("file", *USE) and (key not in learned or json.loads(json.dumps(value)) != learned[key]):
            was = f"with {key}={learned[key]!r}" if key in learned else f"from {about['source']}"
            raise ValueError(f"{term.name}: {key} applies while a start is learned, but {file} was already learned "
                             f"{was}; leave {key} out")
    return weights


class Pretraining:
    """The pretraining of one start; the constructor checks all that can be checked before it begins.

    Args:
        term: the start.
        source: the data that it is learned from.
        seed: seed of all random numbers.
        device: where it is learned.
        precision: 'float32', 'bfloat16' or 'float64', as in `learn`.

    Raises:
        ValueError: the recipe does not fit the source, the network or the precision.
    """

    def __init__(self, term: Term, source: Source, *, seed: int = 0, device: torch.device | str = "cpu",
                 precision: str = "float32") -> None:
        one_of("precision", precision, ("float32", "bfloat16", "float64"))
        start = expression.build(term, {})
        assert isinstance(start, Initialization)
        self.recipe, self.source = start.recipe, source
        if self.recipe.full_precision and precision == "bfloat16":
            raise OptionError(f"{term.name} cannot be learned in bfloat16, because torch cannot compute such gradients "
                              "of convolutions for several tasks at once; use precision='float32'", "precision")
        self.seed, self.device, self.precision = seed, torch.device(device), precision
        self.begin = load(Path(start.use["begin"])) if start.use["begin"] is not None else None
        self.model = str(start.use["model"] or (self.begin.about["model"] if self.begin else self.recipe.model))
        self.units = self.recipe.units(source)
        with plugins.of_record(not self.begin or start.use["model"] is not None or self.begin.trusted):
            self.net = network(self.model, source.shape, self.units)
            model_terms = expression.parse(self.model, "models")
        if self.begin:
            same = ("source", "source_options")
            known = [self.begin.about.get(k) for k in same] == [source.name, dict(source.options)]
            self.net = begun(self.net, self.begin, known)
        if self.net.still and self.recipe.finish is None and not self.begin:
            raise ValueError(f"{term.name} does not set the statistics of batch normalisation that {self.model} has; "
                             "use a network without batch normalisation, or begin with a start that has its statistics")
        self.recipe.draw(source.sampler(torch.Generator()))  # raises now if the source is too small
        hyper = {k: v for k, v in term.resolved().items() if k not in NOT_OF_RECIPE}
        recipe_term = Term(term.name, term.factory, {k: v for k, v in term.given.items() if k in hyper}, term.path)
        self.name = term.name
        self.spec: Mapping[str, Any] = json.loads(json.dumps({
            "format": 1, "stream": f"pretrain-{source.name}", "strategy": str(recipe_term),
            "source_options": dict(source.options), "model": self.model, "hyper": hyper, "seed": seed,
            "precision": precision, "sources": expression.digests([term, *model_terms]),
            } | self._begun()))

    def _begun(self) -> dict[str, Any]:
        """The record of the start that it begins with."""
        names = ("start", "strategy", "source", "source_options", "seed", "steps", "commit", "sha256")
        return {"begun": {k: self.begin.about.get(k) for k in names}} if self.begin else {}

    def untrained(self) -> Weights:
        """The start with its initial parameters, for checks that need a start before it is learned."""
        params = self.net.init(generator(self.seed, "init"))
        return Weights(params | self.recipe.extra_params(self.net, params), self._about())

    def path(self, root: Path) -> Path:
        """The file of the learned start in the store at `root`."""
        folder = store.folder(root, self.spec)
        return folder.with_name(folder.name + ".safetensors")

    def found(self, root: Path | None) -> Weights | None:
        """The learned start in the store at `root`, or None if it is not there."""
        return load(self.path(root)) if root and self.path(root).exists() else None

    def run(self, root: Path | None, watcher: Watcher, save_every: float = 30.0) -> Weights:
        """Learns the start, from its last checkpoint if there is one.

        Args:
            root: store that keeps the checkpoints and the learned start; None keeps neither.
            watcher: shows progress and warnings.
            save_every: seconds between checkpoints.

        Raises:
            Diverged: a loss or a parameter is not finite; the message names the last good checkpoint.
            Busy: another process is learning this start.
        """
        watcher.begin(f"learning {self.spec['strategy']}")
        try:
            if root is None:
                return self._learn(watcher, None, None, 0.0, save_every)
            with Workshop(root, [self.spec]).open() as shop:
                resume, problems = shop.load()
                for problem in problems:
                    watcher.say(problem)
                if resume and resume["environment"] != environment(self.device):
                    watcher.say(f"{self.name} was begun with {resume['environment']} and is resumed with "
                                f"{environment(self.device)}; results may differ in the last digits")
                weights = self._learn(watcher, shop, resume, resume["seconds"] if resume else 0.0, save_every)
                save(self.path(root), weights)
                shop.close()
                return weights
        finally:
            watcher.end()

    def _learn(self, watcher: Watcher, shop: Workshop | None, resume: Mapping[str, Any] | None, earlier: float,
               save_every: float) -> Weights:
        begun = time.monotonic()

        def keep(checkpoint: dict[str, Any]) -> None:
            if shop:
                shop.save({"inner": checkpoint, "environment": environment(self.device),
                           "seconds": earlier + time.monotonic() - begun})

        try:
            params, logs = learn(self.recipe, self.net, self.source, seed=self.seed, device=self.device,
                                   precision=self.precision, save=keep, save_every=save_every,
                                   progress=watcher.advance, resume=resume and resume["inner"])
        except Diverged as error:
            checkpoint = shop and shop.good and shop.place / shop.good["file"]
            last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
            raise Diverged(f"{self.spec['strategy']} diverged: {error}; {last}; try a smaller step size") from None
        steps = max(1, self.recipe.steps // 100)  # averaged into one of about a hundred recorded values
        means = {name: [float(part.mean()) for part in log.split(steps)] for name, log in logs.items()}
        course = {name: [round(m, 6) if math.isfinite(m) else None for m in values] for name, values in means.items()}
        return Weights(params, self._about() | {
            "seconds": round(earlier + time.monotonic() - begun, 1), "environment": environment(self.device),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "logs": course, "loss": course.pop("loss")})

    @property
    def content(self) -> frozenset[str]:
        """Names of all classes that it is learned on, including those of the start that it begins with."""
        return self.source.content | frozenset(self.begin.about["content"] if self.begin else ())

    def _about(self) -> dict[str, Any]:
        return self._begun() | {"start": self.name, "strategy": self.spec["strategy"], "hyper": self.spec["hyper"],
                "source": self.source.name, "source_options": dict(self.source.options), "model": self.model,
                "shape": list(self.source.shape), "units": self.units, "domains": self.source.domains,
                "classes": self.source.n_classes, "content": sorted(self.content), "seed": self.seed,
                "precision": self.precision, "steps": self.recipe.steps, "sources": self.spec["sources"],
                "version": __version__, "commit": commit(),
                "parameters": sum(math.prod(p.shape) for p in self.net.init(torch.Generator()).values())}
