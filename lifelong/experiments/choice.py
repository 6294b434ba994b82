"""Which setting of a strategy was chosen, and how far the seeds can tell it from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lifelong import metrics
from lifelong.spec.run import Spec
from lifelong.store.records import Run


def shown(value: Any) -> str:
    """A hyper-parameter's value as a table shows it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Tried:
    """One setting: what it is, its validation accuracy of each seed [S] (NaN: diverged), and the seconds it took."""

    strategy: str
    optimizer: str
    model: str
    values: dict[str, Any]
    accuracy: np.ndarray
    seconds: float

    @property
    def name(self) -> str:
        """The values that were chosen among, as `ewc.strength=10, sgd.lr=0.1`."""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())

    @property
    def score(self) -> tuple[float, float]:
        """Mean over seeds, and half width of its 95 % t interval; NaN where a seed diverged."""
        mean, half = metrics.mean_interval(self.accuracy)
        return float(mean), float(half)


@dataclass(frozen=True, eq=False)
class Choice:
    """The settings of one strategy, best first; those that diverged last."""

    asked: str
    tried: list[Tried]

    @property
    def best(self) -> Tried:
        """The setting that was chosen."""
        return self.tried[0]

    def behind(self, other: Tried) -> metrics.Paired | None:
        """How far another setting is behind the chosen one, paired by seed; None where one cannot say."""
        if len(other.accuracy) < 2 or not np.isfinite(other.accuracy).all():
            return None
        return metrics.paired_difference(self.best.accuracy, other.accuracy)

    @property
    def alike(self) -> list[Tried]:
        """The settings that these seeds cannot tell from the chosen one: the interval of the difference has 0."""
        return [t for t in self.tried[1:] if np.isfinite(t.accuracy).all()
                and ((d := self.behind(t)) is None or d.mean <= d.half_width)]

    @property
    def verdict(self) -> str:
        """One sentence: what was chosen, and whether the seeds can tell it from the next."""
        said, seeds = self.best.name, f"{len(self.best.accuracy)} seeds"
        if len(self.tried) < 2 or not np.isfinite(self.tried[1].accuracy).all():
            return f"{said} is chosen: no other setting reached the end"
        found = self.behind(self.tried[1])
        if found is None:
            return f"{said} is chosen; one seed cannot tell it from the next"
        ahead = f"{100 * found.mean:.1f} ± {100 * found.half_width:.1f} points ahead of {self.tried[1].name}"
        if self.alike:
            others = f"{len(self.alike)} other setting" + "s" * (len(self.alike) > 1)
            return f"{said} is chosen, {ahead}; {seeds} cannot tell it from {others}"
        return f"{said} is chosen, {ahead}, which {seeds} can tell"

    @property
    def edges(self) -> list[str]:
        """A sentence for each number that was chosen at the end of its grid."""
        said = []
        for name, value in self.best.values.items():
            grid = [v for t in self.tried if type(v := t.values[name]) in (int, float)]
            if type(value) in (int, float) and len(set(grid)) > 1 and value in (min(grid), max(grid)):
                side = "smallest" if value == min(grid) else "largest"
                said.append(f"{name}={shown(value)} is the {side} that was tried: the best may lie beyond")
        return said

    @property
    def seconds(self) -> float:
        """What all settings took together."""
        return round(sum(t.seconds for t in self.tried), 1)


def choice(text: str, specs: Sequence[Spec], runs: Sequence[Run]) -> Choice:
    """What is best of the specs of one strategy, by their runs."""
    tried = [Tried(run.spec["strategy"], run.spec["optimizer"], run.spec["model"], values,
                   metrics.average_accuracy(run.accuracy),
                   run.about["seconds"] * len(run.accuracy) / run.about["lanes"])
             for run, values in zip(runs, _values(specs), strict=True)]
    return Choice(text, sorted(tried, key=lambda t: (math.isnan(t.score[0]), -t.score[0])))


def _values(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Of each spec the hyper-parameters in which they differ, as `ewc.strength`; a second ewc is `ewc_2`."""
    every = []
    for spec in specs:
        terms = [*spec.terms, *([] if spec.start_term else [spec.model_term]), spec.optimizer_term]
        names = [term.name for term in terms]
        twins = [names[:i].count(name) for i, name in enumerate(names)]
        every.append({f"{term.name}_{twin + 1}.{key}" if twin else f"{term.name}.{key}": value
                      for term, twin in zip(terms, twins, strict=True) for key, value in term.resolved().items()})
    differ = [name for name in every[0] if len({repr(named.get(name)) for named in every}) > 1]
    return [{name: named.get(name) for name in differ} for named in every]
