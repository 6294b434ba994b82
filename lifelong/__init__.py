"""lifelong: continual learning benchmarks, forgetting curves, and strategies of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lifelong.version import __version__ as __version__

if TYPE_CHECKING:  # The public names. To publish another one, add its import here: the code below reads this list.
    from lifelong import metrics as metrics
    from lifelong import report as report
    from lifelong.data.stream import Stream as Stream
    from lifelong.experiments.contract import failures as failures
    from lifelong.experiments.prepare import prepare as prepare
    from lifelong.experiments.prepare import run as run
    from lifelong.learning.learner import Initialization as Initialization
    from lifelong.learning.learner import Learner as Learner
    from lifelong.learning.losses import Loss as Loss
    from lifelong.learning.losses import cross_entropy as cross_entropy
    from lifelong.learning.losses import distillation as distillation
    from lifelong.learning.losses import quadratic as quadratic
    from lifelong.learning.losses import squared_error as squared_error
    from lifelong.learning.memory import class_balanced as class_balanced
    from lifelong.learning.memory import reservoir as reservoir
    from lifelong.learning.memory import ring as ring
    from lifelong.learning.parts import BATCH as BATCH
    from lifelong.learning.parts import Part as Part
    from lifelong.learning.parts import View as View
    from lifelong.learning.parts import rehearse as rehearse
    from lifelong.spec.run import Options as Options
    from lifelong.store import Run as Run




def _modules() -> dict[str, str]:
    """The module of every public name, read from the imports above."""
    import ast
    import inspect
    import sys

    body = ast.parse(inspect.getsource(sys.modules[__name__])).body
    block = next(node for node in body if isinstance(node, ast.If))
    return {name.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom)
            for name in node.names}


_MODULES = _modules()
__all__ = [*_MODULES]


def _load(name: str) -> Any:
    """The object that a public name stands for; it is imported on first use, so `import lifelong` loads no torch.

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
