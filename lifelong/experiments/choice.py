"""The chosen setting of a strategy, and its differences from the other settings."""

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
    """The value of a hyper-parameter as text for a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Tried:
    """One setting: its expressions, the validation accuracy of each seed [S] (NaN if it diverged), and its seconds."""

    strategy: str
    optimizer: str
    model: str
    values: dict[str, Any]
    accuracy: np.ndarray
    seconds: float

    @property
    def name(self) -> str:
        """The values of the tuned hyper-parameters, for example `ewc.strength=10, sgd.lr=0.1`."""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.values.items())

    @property
    def score(self) -> tuple[float, float]:
        """Mean over seeds, and half width of its 95 % t interval; NaN if a seed diverged."""
        mean, half = metrics.mean_interval(self.accuracy)
        return float(mean), float(half)


@dataclass(frozen=True, eq=False)
class Choice:
    """The settings of one strategy, best first and diverged ones last."""

    asked: str
    tried: list[Tried]

    @property
    def best(self) -> Tried:
        """The chosen setting."""
        return self.tried[0]

    def behind(self, other: Tried) -> metrics.Paired | None:
        """The chosen minus another setting, paired by seed; None with one seed or if the other setting diverged."""
        if len(other.accuracy) < 2 or not np.isfinite(other.accuracy).all():
            return None
        return metrics.paired_difference(self.best.accuracy, other.accuracy)

    @property
    def alike(self) -> list[Tried]:
        """The settings that do not differ significantly from the chosen one: the interval of the difference has 0."""
        return [t for t in self.tried[1:] if np.isfinite(t.accuracy).all()
                and ((d := self.behind(t)) is None or d.mean <= d.half_width)]

    @property
    def verdict(self) -> str:
        """One sentence: the chosen setting, and whether it differs significantly from the next."""
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
        """A sentence for each chosen number at an end of its grid."""
        said = []
        for name, value in self.best.values.items():
            grid = [v for t in self.tried if type(v := t.values[name]) in (int, float)]
            if type(value) in (int, float) and len(set(grid)) > 1 and value in (min(grid), max(grid)):
                side = "smallest" if value == min(grid) else "largest"
                said.append(f"{name}={shown(value)} is the {side} that was tried: the best may lie beyond")
        return said

    @property
    def seconds(self) -> float:
        """Seconds that all settings took together."""
        return round(sum(t.seconds for t in self.tried), 1)


def choice(text: str, specs: Sequence[Spec], runs: Sequence[Run]) -> Choice:
    """The choice among the specs of one strategy, by their runs."""
    tried = [Tried(run.spec["strategy"], run.spec["optimizer"], run.spec["model"], values,
                   metrics.average_accuracy(run.accuracy),
                   run.about["seconds"] * len(run.accuracy) / run.about["lanes"])
             for run, values in zip(runs, _values(specs), strict=True)]
    return Choice(text, sorted(tried, key=lambda t: (math.isnan(t.score[0]), -t.score[0])))


def _values(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """For each spec the hyper-parameters in which the specs differ, as `ewc.strength`; a second ewc is `ewc_2`."""
    every = []
    for spec in specs:
        terms = [*spec.terms, *([] if spec.start_term else [spec.model_term]), spec.optimizer_term]
        names = [term.name for term in terms]
        twins = [names[:i].count(name) for i, name in enumerate(names)]
        every.append({f"{term.name}_{twin + 1}.{key}" if twin else f"{term.name}.{key}": value
                      for term, twin in zip(terms, twins, strict=True) for key, value in term.resolved().items()})
    differ = [name for name in every[0] if len({repr(named.get(name)) for named in every}) > 1]
    return [{name: named.get(name) for name in differ} for named in every]
