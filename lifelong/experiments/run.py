"""Runs from Python: one strategy, or a comparison of several, on one stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, overload

from lifelong.data.stream import Stream
from lifelong.experiments.prepare import prepare
from lifelong.learning.learner import Initialization, Learner
from lifelong.learning.parts import Part, Sum
from lifelong.spec import catalogue
from lifelong.spec.run import OptionError, Options
from lifelong.store.records import Run

Strategy: TypeAlias = "str | Part | Sum | Learner | Initialization | Callable[..., Any]"


@overload
def run(stream: str | Stream, strategies: Strategy, *, store: str | Path | None = None, seeds: int | None = None,
        epochs: int | None = None, steps: int | None = None, batch_size: int | None = None,
        optimizer: str | None = None, model: str | None = None, eval_every: int = 0, device: str = "auto",
        dtype: str = "float32", data: str | None = None, save_every: float = 30.0, memory: float | None = None,
        overlap: bool = False, augment: str | None = None, evaluate: str | None = None, trust: bool = False) -> Run: ...


@overload
def run(stream: str | Stream, strategies: list[Any] | tuple[Any, ...], *, store: str | Path | None = None,
        seeds: int | None = None, epochs: int | None = None, steps: int | None = None, batch_size: int | None = None,
        optimizer: str | None = None, model: str | None = None, eval_every: int = 0, device: str = "auto",
        dtype: str = "float32", data: str | None = None, save_every: float = 30.0, memory: float | None = None,
        overlap: bool = False, augment: str | None = None, evaluate: str | None = None,
        trust: bool = False) -> list[Run]: ...


def run(stream: str | Stream, strategies: Any, *, store: str | Path | None = None, seeds: int | None = None,
        epochs: int | None = None, steps: int | None = None, batch_size: int | None = None,
        optimizer: str | None = None, model: str | None = None, eval_every: int = 0, device: str = "auto",
        dtype: str = "float32", data: str | None = None, save_every: float = 30.0, memory: float | None = None,
        overlap: bool = False, augment: str | None = None, evaluate: str | None = None, trust: bool = False,
        **unknown: Any) -> Run | list[Run]:
    """Trains one strategy on a stream, all seeds at once; returns its run, or a list of runs for a list of strategies.

    Args:
        stream: an expression such as "split-mnist(tasks=5)", or a Stream.
        strategies: an expression, a Part, a sum of Parts, a Learner, or a class or function that makes one; or a list
            of these to compare. In a list, an expression with lists of values gives a run for each combination.
        store: folder in which runs are stored, found and resumed; None stores nothing.
        seeds: number of seeds; None uses 5, or the number that the Stream was made for.
        epochs: passes over each task's data; None uses the stream's default, also for the next four arguments.
        steps: steps per task, instead of `epochs`.
        batch_size: examples per step.
        optimizer: an expression such as "adam(lr=1e-3)".
        model: an expression such as "mlp(hidden=(256, 256))" or "./net.py:my_net".
        eval_every: number of steps between additional evaluations inside a task; 0 for none.
        device: 'auto', 'cpu' or 'cuda'.
        dtype: 'float32', 'bfloat16' (the network only) or 'float64'.
        data: folder of the raw data; None uses $LIFELONG_DATA, or the user's cache folder.
        save_every: seconds between checkpoints.
        memory: GiB that training may use; None uses 80 % of the free memory.
        overlap: whether to allow a start that was learned on classes in the test data.
        augment: random augmentation of training images, or 'none'; None uses the stream's default.
        evaluate: tasks to evaluate after each task, such as 'seen' or 'all:10'; None uses the stream's default.
        trust: whether to run Python files that are named only in the file of a start, as its network; read them first.

    Raises:
        TypeError: unknown option; the message suggests the nearest one.
        ValueError, LookupError, TypeError, ImportError: invalid arguments.
        RuntimeError: training failed; the message is that of the first failure.
    """
    for name in unknown:
        near = catalogue.nearest(name, _OPTIONS)
        raise TypeError(f"run has no option {name!r}; " + (f"did you mean {near}?" if near
                                                           else f"it has {', '.join(_OPTIONS)}"))
    if isinstance(stream, Stream) and seeds not in (None, stream.n_seeds):
        raise OptionError(f"seeds must be {stream.n_seeds}, for which the stream {stream.name} was made, got {seeds}",
                          "seeds")
    if seeds is None:
        seeds = stream.n_seeds if isinstance(stream, Stream) else Options.seeds
    options = Options(seeds=seeds, epochs=epochs, steps=steps, batch_size=batch_size, optimizer=optimizer, model=model,
                      eval_every=eval_every, device=device, dtype=dtype, data=data, save_every=save_every,
                      memory=memory, overlap=overlap, augment=augment, evaluate=evaluate, trust=trust)
    several = isinstance(strategies, (list, tuple))
    experiment = prepare(stream, strategies if several else [strategies], options)
    if not several and len(experiment.specs) > 1:
        raise ValueError("one strategy is one run, so its values are single: put it into a list to compare them")
    outcome = experiment.run(Path(store) if store else None)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    return outcome.runs if several else outcome.runs[0]


_SIGNATURE = inspect.signature(run)
_OPTIONS = [name for name, p in _SIGNATURE.parameters.items() if p.kind is p.KEYWORD_ONLY]
run.__signature__ = _SIGNATURE.replace(parameters=[  # type: ignore[attr-defined]
    p for p in _SIGNATURE.parameters.values() if p.kind is not p.VAR_KEYWORD])
