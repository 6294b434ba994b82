"""What a run is made of: options, and a strategy, model and optimizer with single values; sums become learners."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lifelong.spec import bounds, catalogue
from lifelong.spec.evaluation import Evaluation
from lifelong.spec.expression import Term


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
        dtype: 'float32' or 'float64'; 'bfloat16' is float32 with the network's forward and backward pass in bfloat16.
        data: folder of the raw data.
        save_every: seconds between checkpoints; 0: one after every step and every task.
        overlap: whether a start may have been learned on classes that the stream tests on.
        memory: GiB that training may take; None: what is free. Lanes that do not fit together are trained in turn.
        augment: how images are changed at random where they are learned, an expression, or 'none'.
        evaluate: which tasks are evaluated after which task, see `Evaluation`; None: as the stream has it.
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
    memory: float | None = None
    overlap: bool = False
    augment: str | None = None
    evaluate: str | None = None

    def __post_init__(self) -> None:
        bounds.at_least(1, **{"--seeds": self.seeds})
        given = {"--epochs": self.epochs, "--steps": self.steps, "--batch-size": self.batch_size}
        bounds.at_least(1, **{name: value for name, value in given.items() if value is not None})
        bounds.at_least(0, **{"--eval-every": self.eval_every})
        bounds.one_of("--dtype", self.dtype, ("float32", "float64", "bfloat16"))
        bounds.at_least(0, **{"--save-every": self.save_every})
        bounds.above(0, **{"--memory": 1 if self.memory is None else self.memory})
        Evaluation.parse(self.evaluate or "all")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give --epochs or --steps, not both")


@dataclass(frozen=True)
class Setting:
    """One run to be: a strategy, a model and an optimizer, all with single values; and how these were chosen, if so."""

    terms: list[Term]
    model: Term
    optimizer: Term
    spec: Mapping[str, Any]
    tuned: Mapping[str, Any] | None = None

    @cached_property
    def reals(self) -> dict[tuple[Any, str], float]:
        """The real-valued hyper-parameters by (place, name): they may differ between the lanes of a stack."""
        return {(place, name): value for place, term in self._places() for name, value in term.resolved().items()
                if catalogue.is_real(term.factory, name) and isinstance(value, float)}

    @cached_property
    def frame(self) -> str:
        """Everything else: settings with equal frames fit into one stack."""
        fixed = [[term.path, term.name, {k: v for k, v in term.resolved().items() if (place, k) not in self.reals}]
                 for place, term in self._places()]
        others = {k: v for k, v in self.spec.items() if k not in ("strategy", "optimizer", "hyper")}
        return json.dumps([fixed, others], sort_keys=True, default=str)

    @property
    def start(self) -> str | None:
        """The expression of the start that must be learned first, if there is one."""
        return next((str(term) for term in self.terms if term.learned), None)

    def _places(self) -> list[tuple[Any, Term]]:
        return [*enumerate(self.terms), ("optimizer", self.optimizer)]
