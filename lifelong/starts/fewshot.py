"""Few-shot evaluation: how well a start tells new classes apart after a few examples of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lifelong import __version__, store
from lifelong.data.source import Source
from lifelong.metrics import mean_interval
from lifelong.networks.net import Net, Params
from lifelong.progress import Watcher
from lifelong.provenance import commit, environment
from lifelong.randomness import generator
from lifelong.spec import bounds, expression
from lifelong.starts.pretrain import USE, Pretraining, filed, make_source, parse
from lifelong.starts.recipe import nearest_mean
from lifelong.starts.weights import Weights, checksum, here, load

Answer = Callable[[Net, Params, Tensor, Tensor, Tensor, int], Tensor]
TOGETHER = 8  # episodes: the images of more leave a processor's cache


@dataclass(frozen=True)
class Evaluation:
    """A few-shot evaluation to be, with everything checked that can be checked before.

    Attributes:
        source: where the classes come from.
        weights: the start.
        way, shots, queries: classes of an episode, and examples of each that are shown and asked about.
        episodes: how many.
        seed: of the episodes.
        device: where.
        overlap: whether the start may have been learned on classes that are asked about.
        together: whether also all queries of an episode are answered together, where the network has batch
            normalisation; that computes every image anew in every episode.

    Raises:
        ValueError: where start and source do not fit, or the source has not what is asked for.
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
        bounds.at_least(2, **{"--way": self.way, "--episodes": self.episodes})
        bounds.at_least(1, **{"--shots": self.shots, "--queries": self.queries})
        about, source = self.weights.about, self.source
        if tuple(about["shape"]) != source.shape:
            raise ValueError(f"{about['start']} was learned on examples of shape {tuple(about['shape'])}, and those of "
                             f"{source.name} are of shape {source.shape}")
        if self.both and not self.overlap:
            raise ValueError(f"{about['start']} was learned on {len(self.both)} of the classes of {source.name}, for "
                             f"example {min(self.both)}: use another source, or insist with --overlap")
        if source.domains > 1 and self.way != source.n_classes:
            raise ValueError(f"{source.name} has {source.domains} domains of the same {source.n_classes} classes: an "
                             f"episode is one domain, so use --way {source.n_classes}, got {self.way}")
        source.sampler(generator(self.seed)).task(self.way, self.shots + self.queries)

    @property
    def both(self) -> frozenset[str]:
        """What the start was learned on and is asked about."""
        return self.source.content & frozenset(self.weights.about["content"])

    @cached_property
    def asked(self) -> dict[str, Any]:
        """What a store finds the evaluation by, JSON values; not whether queries are also answered together."""
        about = self.weights.about
        terms = [*here("strategy", about), *here("model", about)]
        return {"format": store.EVALUATIONS, "start": about["strategy"], "sha256": checksum(self.weights.params),
                "source": self.source.name, "source_options": dict(self.source.options), "way": self.way,
                "shots": self.shots, "queries": self.queries, "episodes": self.episodes, "seed": self.seed,
                "overlap": len(self.both) if about["content"] else "unknown",
                "sources": expression.digests(terms)}

    def found(self, root: Path) -> dict[str, Any] | None:
        """What was found when the same was asked before, from the store at `root`; None where it was not.

        Raises:
            StoreError: where it is there but damaged.
        """
        file = store.evaluation_file(root, self.asked)
        record = store.load_evaluation(file) if file.exists() else None
        wanted = self.together and self._net.fresh is not None
        return None if record and wanted and not record["transductive"] else record

    @cached_property
    def _net(self) -> Net:
        return self.weights.net(int(self.weights.about["units"]))

    @torch.no_grad()
    def tried(self) -> Evaluation:
        """The same, after one episode was asked, so that what cannot be is refused before a start is learned."""
        params = {k: p.to(self.device) for k, p in self.weights.params.items()}
        one = replace(self, episodes=2, queries=1)
        one._accuracies(self._net, params, own_answer(self.weights) or nearest_mean, one.rows()[:1], True,
                        lambda share: None)
        return self

    def rows(self) -> Tensor:
        """Rows [episodes, way, shots + queries] of all episodes; the i-th is the same however many there are."""
        sampler = self.source.sampler(generator(0))
        return torch.stack([replace(sampler, g=generator(self.seed, "fewshot", i)).task(
            self.way, self.shots + self.queries) for i in range(self.episodes)])

    @torch.no_grad()
    def run(self, watcher: Watcher = Watcher()) -> dict[str, Any]:
        """What was found, JSON values: accuracies with half widths of 95 % t intervals over episodes.

        `transductive` is that with batch normalisation by the statistics of all queries of an episode together; None
        for a network without batch normalisation, and without `together`.
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
                def tell(share: float, i: int = i) -> None:
                    watcher.advance((i + share) / len(modes))

                accuracy = self._accuracies(network, params, answer, rows, mode == "own", tell)
                mean, half = mean_interval(accuracy.numpy())
                found[mode] = {"accuracy": float(mean), "half_width": float(half)}
        finally:
            watcher.end()
        learned = {f"learning_{k}": about.get(k) for k in ("seed", "seconds", "precision", "version", "commit")}
        record: dict[str, Any] = {
            **self.asked, **found["own"], "transductive": found.get("transductive"),
            "interval": "95 % t over episodes", "answer": "nearest mean of features" if answer is nearest_mean else
            "its own", "learned_from": about["source"], "learned_with": about["source_options"],
            "model": about["model"], "hyper": about.get("hyper"), "steps": about["steps"], "begun": about.get("begun"),
            **learned, "version": __version__, "commit": commit(), **environment(self.device),
            "seconds": round(time.monotonic() - began, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        return record

    def _accuracies(self, net: Net, params: Params, answer: Answer, rows: Tensor, alone: bool,
                    tell: Callable[[float], None]) -> Tensor:
        """The accuracy [episodes] of each episode; `alone`: features do not depend on the batch."""
        sampler = self.source.sampler(generator(0), self.device, next(iter(params.values())).dtype)
        known: Tensor | None = None
        if alone and answer is nearest_mean and net.features is not None and self.source.rows.numel() < rows.numel():
            # Every example once, instead of in all the episodes that show it.
            every = self.source.rows.flatten()
            place = torch.zeros(int(every.max()) + 1, dtype=torch.int64)
            place[every] = torch.arange(len(every))
            known = torch.cat([net.features(params, sampler.fetch(part)[0]) for part in every.split(512)])
            net, rows = net._replace(features=lambda params, x: x), place[rows]
        units = torch.arange(self.way, device=self.device)
        y, asked = units.repeat_interleave(self.shots), units.repeat_interleave(self.queries)

        def one(x: Tensor, query: Tensor) -> Tensor:
            return answer(net, params, x, y, query, self.way)

        found = []
        for part in rows.split(TOGETHER):
            x = sampler.fetch(part)[0] if known is None else known[part.to(known.device)]
            shown, query = x[:, :, :self.shots].flatten(1, 2), x[:, :, self.shots:].flatten(1, 2)
            scores = self._scores(one, shown, query, lifted=answer is not nearest_mean)
            found.append((scores.argmax(-1) == asked).double().mean(-1))
            tell(min(1.0, len(found) * TOGETHER / len(rows)))
        return torch.cat(found).cpu()

    def _scores(self, one: Callable[[Tensor, Tensor], Tensor], shown: Tensor, query: Tensor, lifted: bool) -> Tensor:
        """Scores [E, m, way] of some episodes; lifting gains where gradients are taken, else it loses."""
        if lifted:
            try:
                return torch.vmap(one)(shown, query)
            except RuntimeError:  # one that cannot be lifted
                pass
        return torch.stack([one(*each) for each in zip(shown, query, strict=True)])


def transductive(net: Net) -> Net:
    """The same network, normalising whatever it is shown by its own statistics, so that queries see one another."""
    def features(params: Params, x: Tensor) -> Tensor:
        assert net.fresh is not None
        return net.fresh(params, x)[0]

    def apply(params: Params, x: Tensor) -> Tensor:
        return F.linear(features(params, x), *(params[k] for k in net.head))

    return net._replace(features=features, apply=apply)


def own_answer(weights: Weights) -> Answer | None:
    """How a start answers queries, if it has a way of its own.

    Raises:
        LookupError: where what made it is not here.
    """
    term = here("strategy", weights.about)[0]
    answer: Answer | None = expression.build(term, {}).recipe.answer
    return answer


def find(start: str, device: torch.device, data: str | None, root: Path | None) -> Weights | Pretraining:
    """The start that is meant: a file, `NAME(file='FILE')`, or one that is in the store or is yet to be learned.

    Raises:
        LookupError, ValueError, OSError: one sentence about what was asked wrongly.
    """
    if Path(start).suffix == ".safetensors":
        return load(Path(start))
    term = parse(start)
    if beside := [k for k in term.given if k in USE]:
        raise ValueError(f"{term.name}: {beside[0]} says how a stream uses a start, and few-shot evaluation asks it as "
                         f"it was learned: leave {beside[0]} out")
    if weights := filed(term):
        return weights
    use = term.resolved()
    if use["source"] is None:
        raise ValueError(f"say what {term.name} is learned from, for example {term.name}(source='omniglot'), or give "
                         "the file that `lifelong pretrain` made")
    todo = Pretraining(term, make_source(use["source"], data), device=device)
    return todo.found(root) or todo
