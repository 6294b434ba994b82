"""What a run is made from: its options, and one strategy, model and optimizer with single values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lifelong import registry
from lifelong.registry import Term


@dataclass(frozen=True)
class Options:
    """How runs are made; None stands for the stream's own default.

    Attributes:
        seeds: how many: 0..seeds-1.
        epochs: passes over each task's data.
        steps: steps a task, in place of epochs.
        batch_size: examples a step.
        optimizer, model: expressions.
        eval_every: also measure every this many steps inside a task.
        device: 'auto', 'cpu' or 'cuda'.
        dtype: 'float32' or 'float64'.
        data: folder of the raw data.
        save_every: seconds between checkpoints.
    """

    seeds: int = 5
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    model: str | None = None
    eval_every: int = 0
    device: str = "auto"
    dtype: str = "float32"
    data: str | None = None
    save_every: float = 30.0

    def __post_init__(self) -> None:
        registry.at_least(1, **{"--seeds": self.seeds})
        given = {"--epochs": self.epochs, "--steps": self.steps, "--batch-size": self.batch_size}
        registry.at_least(1, **{name: value for name, value in given.items() if value is not None})
        registry.at_least(0, **{"--eval-every": self.eval_every})
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give --epochs or --steps, not both")


@dataclass(frozen=True)
class Setting:
    """One run to be: a strategy, a model and an optimizer, all with single values."""

    terms: list[Term]
    model: Term
    optimizer: Term
    spec: Mapping[str, Any]

    @cached_property
    def reals(self) -> dict[tuple[Any, str], float]:
        """The real-valued hyper-parameters by (place, name): they may differ between the lanes of a stack."""
        return {(place, name): value for place, term in self._places() for name, value in term.resolved().items()
                if registry.is_real(term.factory, name) and isinstance(value, float)}

    @cached_property
    def frame(self) -> str:
        """Everything else: settings with equal frames fit into one stack."""
        fixed = [[term.path, term.name, {k: v for k, v in term.resolved().items() if (place, k) not in self.reals}]
                 for place, term in self._places()]
        others = {k: v for k, v in self.spec.items() if k not in ("strategy", "optimizer", "hyper")}
        return json.dumps([fixed, others], sort_keys=True, default=str)

    def _places(self) -> list[tuple[Any, Term]]:
        return [*enumerate(self.terms), ("optimizer", self.optimizer)]
