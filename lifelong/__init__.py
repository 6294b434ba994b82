"""lifelong: continual learning benchmarks, forgetting curves, and strategies of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lifelong.version import __version__ as __version__

if TYPE_CHECKING:  # the public names, for type checkers and editors
    from lifelong import metrics as metrics
    from lifelong import report as report
    from lifelong.data.pool import Pool as Pool
    from lifelong.data.stream import Stream as Stream
    from lifelong.experiments.contract import failures as failures
    from lifelong.experiments.prepare import prepare as prepare
    from lifelong.experiments.run import run as run
    from lifelong.learning.learner import Initialization as Initialization
    from lifelong.learning.learner import Learner as Learner
    from lifelong.learning.losses import Loss as Loss
    from lifelong.learning.losses import Slice as Slice
    from lifelong.learning.losses import batch_loss as batch_loss
    from lifelong.learning.losses import cross_entropy as cross_entropy
    from lifelong.learning.losses import distillation as distillation
    from lifelong.learning.losses import quadratic as quadratic
    from lifelong.learning.losses import squared_error as squared_error
    from lifelong.learning.memory import Memory as Memory
    from lifelong.learning.memory import class_balanced as class_balanced
    from lifelong.learning.memory import reservoir as reservoir
    from lifelong.learning.memory import ring as ring
    from lifelong.learning.parts import BATCH as BATCH
    from lifelong.learning.parts import Part as Part
    from lifelong.learning.parts import Sum as Sum
    from lifelong.learning.parts import View as View
    from lifelong.learning.parts import rehearse as rehearse
    from lifelong.networks.net import Net as Net
    from lifelong.spec.run import Options as Options
    from lifelong.spec.run import Spec as Spec
    from lifelong.store import Run as Run
    from lifelong.store.frame import frame as frame


# The same list for run time: names are imported on first use, so that `import lifelong` loads no torch.
_MODULES = {
    "metrics": "lifelong",
    "report": "lifelong",
    "Pool": "lifelong.data.pool",
    "Stream": "lifelong.data.stream",
    "failures": "lifelong.experiments.contract",
    "prepare": "lifelong.experiments.prepare",
    "run": "lifelong.experiments.run",
    "Initialization": "lifelong.learning.learner",
    "Learner": "lifelong.learning.learner",
    "Loss": "lifelong.learning.losses",
    "Slice": "lifelong.learning.losses",
    "batch_loss": "lifelong.learning.losses",
    "cross_entropy": "lifelong.learning.losses",
    "distillation": "lifelong.learning.losses",
    "quadratic": "lifelong.learning.losses",
    "squared_error": "lifelong.learning.losses",
    "Memory": "lifelong.learning.memory",
    "class_balanced": "lifelong.learning.memory",
    "reservoir": "lifelong.learning.memory",
    "ring": "lifelong.learning.memory",
    "BATCH": "lifelong.learning.parts",
    "Part": "lifelong.learning.parts",
    "Sum": "lifelong.learning.parts",
    "View": "lifelong.learning.parts",
    "rehearse": "lifelong.learning.parts",
    "Net": "lifelong.networks.net",
    "Options": "lifelong.spec.run",
    "Spec": "lifelong.spec.run",
    "Run": "lifelong.store",
    "frame": "lifelong.store.frame",
}
__all__ = [*_MODULES]


def _load(name: str) -> Any:
    """The object that a public name stands for.

    Raises:
        AttributeError: for any other name, with the public names that are spelled like it.
    """
    import difflib
    import importlib

    if name not in _MODULES:
        near = difflib.get_close_matches(name, _MODULES, 3, 0.5)
        raise AttributeError(f"module 'lifelong' has no attribute {name!r}"
                             + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if _MODULES[name] == __name__:
        return importlib.import_module(f"{__name__}.{name}")
    globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return globals()[name]


if not TYPE_CHECKING:  # a type checker that saw this function would accept every name
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
