"""Few-shot evaluation: how well a start classifies new classes given a few examples of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong import store
from lifelong.data.source import Source
from lifelong.metrics import mean_interval
from lifelong.networks.net import Net, Params
from lifelong.progress import Watcher
from lifelong.provenance import commit, environment
from lifelong.randomness import generator
from lifelong.spec import expression
from lifelong.spec.run import OptionError, at_least
from lifelong.starts.pretrain import USE, Pretraining, from_file, make_source, parse
from lifelong.starts.recipe import nearest_mean
from lifelong.starts.weights import Weights, checksum, here, load
from lifelong.version import __version__

Answer = Callable[[Net, Params, Tensor, Tensor, Tensor, int], Tensor]
BATCH = 8  # episodes computed at once; the images of more do not fit into a processor's cache


@dataclass(frozen=True)
class Evaluation:
    """A few-shot evaluation of a start; the constructor checks all that can be checked before it runs.

    Attributes:
        source: the source of the classes.
        weights: the start.
        way: classes of an episode, 2 or more.
        shots: support examples of each class, 1 or more.
        queries: query examples of each class, 1 or more.
        episodes: number of episodes, 2 or more.
        seed: seed of the episodes.
        device: where it is computed.
        overlap: whether the start may have been learned on classes of the source.
        together: whether the transductive accuracy is measured as well, for networks with batch normalisation: all
            queries of an episode are normalised together, so every image is computed again in every episode.

    Raises:
        ValueError: the start does not fit the source, or the source is too small.
    """

    source: Source
    weights: Weights
    way: int = 5
    shots: int = 1
    queries: int = 15
    episodes: int = 1000
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    overlap: bool = False
    together: bool = True

    def __post_init__(self) -> None:
        at_least(2, way=self.way, episodes=self.episodes)
        at_least(1, shots=self.shots, queries=self.queries)
        about, source = self.weights.about, self.source
        if tuple(about["shape"]) != source.shape:
            raise ValueError(f"{about['start']} was learned on examples of shape {tuple(about['shape'])}, but those of "
                             f"{source.name} have shape {source.shape}")
        if self.shared_classes and not self.overlap:
            raise OptionError(f"{about['start']} was learned on {len(self.shared_classes)} of the classes of "
                              f"{source.name}, for example {min(self.shared_classes)}; use another source, or allow it "
                              "with overlap", "overlap")
        if source.domains > 1 and self.way != source.n_classes:
            raise OptionError(f"way must be {source.n_classes}, got {self.way}: {source.name} has {source.domains} "
                              f"domains of the same {source.n_classes} classes, and an episode has all classes of one",
                              "way")
        source.sampler(generator(self.seed)).task(self.way, self.shots + self.queries)

    @property
    def shared_classes(self) -> frozenset[str]:
        """Names of the classes of the source that the start was learned on."""
        return self.source.content & frozenset(self.weights.about["content"])

    @cached_property
    def question(self) -> dict[str, Any]:
        """The JSON values that identify the evaluation in a store; `together` is not one of them."""
        about = self.weights.about
        terms = [*here("strategy", self.weights), *here("model", self.weights)]
        return {"format": store.EVALUATIONS, "start": about["strategy"], "sha256": checksum(self.weights.params),
                "source": self.source.name, "source_options": dict(self.source.options), "way": self.way,
                "shots": self.shots, "queries": self.queries, "episodes": self.episodes, "seed": self.seed,
                "overlap": len(self.shared_classes) if about["content"] else "unknown",
                "sources": expression.digests(terms)}

    def found(self, root: Path) -> dict[str, Any] | None:
        """The record of this evaluation in the store at `root`, or None if it was not made before.

        A record without the transductive accuracy does not count if that accuracy is to be measured.

        Raises:
            StoreError: the record is damaged.
        """
        file = store.evaluation_file(root, self.question)
        record = store.load_evaluation(file) if file.exists() else None
        transductive_needed = self.together and self._net.fresh is not None
        return None if record and transductive_needed and not record["transductive"] else record

    @cached_property
    def _net(self) -> Net:
        return self.weights.net(int(self.weights.about["units"]))

    @torch.no_grad()
    def tried(self) -> Evaluation:
        """This evaluation, after a trial episode whose errors are raised before a start is learned in vain."""
        params = {k: p.to(self.device) for k, p in self.weights.params.items()}
        trial = replace(self, episodes=2, queries=1)
        trial._accuracies(self._net, params, own_answer(self.weights) or nearest_mean, trial.rows()[:1], True,
                          lambda share: None)
        return self

    def rows(self) -> Tensor:
        """Rows [episodes, way, shots + queries] of all episodes; episode i does not depend on how many there are."""
        sampler = self.source.sampler(generator(0))
        return torch.stack([replace(sampler, g=generator(self.seed, "fewshot", i)).task(
            self.way, self.shots + self.queries) for i in range(self.episodes)])

    @torch.no_grad()
    def run(self, watcher: Watcher = Watcher()) -> dict[str, Any]:
        """The record of the evaluation, JSON values: accuracies and half widths of 95 % t intervals over episodes.

        `accuracy` classifies each query by itself. `transductive` normalises all queries of an episode together; it is
        None for a network without batch normalisation, and if `together` is False.
        """
        began, about = time.monotonic(), self.weights.about
        params = {k: p.to(self.device) for k, p in self.weights.params.items()}
        answer = own_answer(self.weights) or nearest_mean
        modes: Mapping[str, Net] = {"own": self._net} | (
            {"transductive": transductive(self._net)} if self._net.fresh and self.together else {})
        rows, found = self.rows(), {}
        watcher.begin(f"{self.episodes} episodes of {about['strategy']}")
        try:
            for i, (mode, network) in enumerate(modes.items()):
                def progress(share: float, i: int = i) -> None:
                    watcher.advance((i + share) / len(modes))

                accuracy = self._accuracies(network, params, answer, rows, mode == "own", progress)
                mean, half = mean_interval(accuracy.numpy())
                found[mode] = {"accuracy": float(mean), "half_width": float(half)}
        finally:
            watcher.end()
        learned = {f"learning_{k}": about.get(k) for k in ("seed", "seconds", "precision", "version", "commit")}
        record: dict[str, Any] = {
            **self.question, **found["own"], "transductive": found.get("transductive"),
            "interval": "95 % t over episodes", "answer": "nearest mean of features" if answer is nearest_mean else
            "its own", "learned_from": about["source"], "learned_with": about["source_options"],
            "model": about["model"], "hyper": about.get("hyper"), "steps": about["steps"], "begun": about.get("begun"),
            **learned, "version": __version__, "commit": commit(), **environment(self.device),
            "seconds": round(time.monotonic() - began, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        return record

    def _accuracies(self, net: Net, params: Params, answer: Answer, rows: Tensor, independent: bool,
                    progress: Callable[[float], None]) -> Tensor:
        """The accuracy of each episode, [episodes]; `independent`: features do not depend on the rest of the batch."""
        sampler = self.source.sampler(generator(0), self.device, next(iter(params.values())).dtype)
        features: Tensor | None = None
        if (independent and answer is nearest_mean and net.features is not None
                and self.source.rows.numel() < rows.numel()):
            # Compute every example once, instead of in each of its episodes.
            examples = self.source.rows.flatten()
            position = torch.zeros(int(examples.max()) + 1, dtype=torch.int64)
            position[examples] = torch.arange(len(examples))
            features = torch.cat([net.features(params, sampler.fetch(part)[0]) for part in examples.split(512)])
            net, rows = net._replace(features=lambda params, x: x), position[rows]
        units = torch.arange(self.way, device=self.device)
        y, query_y = units.repeat_interleave(self.shots), units.repeat_interleave(self.queries)

        def episode_scores(x: Tensor, query: Tensor) -> Tensor:
            return answer(net, params, x, y, query, self.way)

        accuracies = []
        for part in rows.split(BATCH):
            x = sampler.fetch(part)[0] if features is None else features[part.to(features.device)]
            support, query = x[:, :, :self.shots].flatten(1, 2), x[:, :, self.shots:].flatten(1, 2)
            scores = self._scores(episode_scores, support, query, lifted=answer is not nearest_mean)
            accuracies.append((scores.argmax(-1) == query_y).double().mean(-1))
            progress(min(1.0, len(accuracies) * BATCH / len(rows)))
        return torch.cat(accuracies).cpu()

    def _scores(self, episode_scores: Callable[[Tensor, Tensor], Tensor], support: Tensor, query: Tensor,
                lifted: bool) -> Tensor:
        """Scores [E, m, way] of E episodes; `torch.vmap` is faster only if the answer takes gradients."""
        if lifted:
            with contextlib.suppress(RuntimeError):  # an answer that `torch.vmap` does not support
                return torch.vmap(episode_scores)(support, query)
        return torch.stack([episode_scores(*episode) for episode in zip(support, query, strict=True)])


def transductive(net: Net) -> Net:
    """The network with batch normalisation by the statistics of the batch, so that queries influence one another."""
    def features(params: Params, x: Tensor) -> Tensor:
        assert net.fresh is not None
        return net.fresh(params, x)[0]

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(features(params, x), *(params[k] for k in net.head))

    return net._replace(features=features, apply=apply)


def own_answer(weights: Weights) -> Answer | None:
    """The `answer` of a start's recipe, or None if it has none and the nearest class mean is used.

    Raises:
        LookupError: the file that defines the start is missing.
    """
    term = here("strategy", weights)[0]
    answer: Answer | None = expression.build(term, {}).recipe.answer
    return answer


def find(start: str, device: torch.device, data: str | None, root: Path | None) -> Weights | Pretraining:
    """The start that a user named: loaded from a file or the store, or else the pretraining that will learn it.

    Args:
        start: the file of a start, or an expression such as `oml(source='omniglot')` or `oml(file='FILE')`.
        device: where it is learned.
        data: folder of the data, for sources that read files.
        root: the store; None has none.

    Raises:
        LookupError, ValueError, OSError: the start is not one of these, or cannot be read; in one sentence.
    """
    if Path(start).suffix == ".safetensors":
        return load(Path(start))
    term = parse(start)
    if unused := [k for k in term.given if k in USE]:
        raise ValueError(f"{term.name}: {unused[0]} applies to streams only; few-shot evaluation uses a start as it "
                         f"was learned, so leave {unused[0]} out")
    if weights := from_file(term):
        return weights
    use = term.resolved()
    if use["source"] is None:
        raise ValueError(f"{term.name} needs a source, for example {term.name}(source='omniglot'), or a file made by "
                         "`lifelong pretrain`")
    pretraining = Pretraining(term, make_source(use["source"], data), device=device)
    return pretraining.found(root) or pretraining
