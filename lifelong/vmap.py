"""Functions of one lane as functions of a stack of lanes; the one place that knows torch's private names for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

try:  # what torch.func.vmap calls; its own handling of nested arguments costs ten times as much as these
    from torch._C._functorch import (
        _add_batch_dim,
        _remove_batch_dim,
        _vmap_decrement_nesting,
        _vmap_increment_nesting,
    )
except ImportError:  # a torch that keeps them elsewhere: slower, equal
    _add_batch_dim = None  # type: ignore[assignment]

_level = getattr(torch._C._functorch, "maybe_current_level", lambda: 0)


def lifted() -> bool:
    """Whether this is called inside a lift or a derivative of `torch.func`, or it cannot be known."""
    return _level() is not None


def tree(f: Callable[..., Any], *states: Any) -> Any:
    """`f` over the leaves of nested dicts of the same shape."""
    if isinstance(states[0], dict):
        return {k: tree(f, *(s[k] for s in states)) for k in states[0]}
    return f(*states)


def lift(f: Callable[..., Any], n: int, *args: Any) -> Any:
    """`torch.func.vmap(f)(*args)` over the leading axis [n] of every tensor in nested dicts and tuples.

    Numbers in a tuple that `f` returns are the same for all lanes, and are returned as they are.
    """
    if _add_batch_dim is None:
        return _lifted_by_torch(f, *args)
    level = _vmap_increment_nesting(n, "error")
    try:
        out = f(*(_nested(lambda t: _add_batch_dim(t, 0, level), a) for a in args))
        return _nested(lambda t: _remove_batch_dim(t, level, n, 0), out)
    finally:
        _vmap_decrement_nesting()


def _lifted_by_torch(f: Callable[..., Any], *args: Any) -> Any:
    shape: list[Any] = []

    def tensors(*args: Any) -> list[Tensor]:
        shape[:] = tree_flatten(f(*args))
        return [leaf for leaf in shape[0] if isinstance(leaf, Tensor)]

    found = iter(torch.func.vmap(tensors)(*args))
    return tree_unflatten([next(found) if isinstance(leaf, Tensor) else leaf for leaf in shape[0]], shape[1])


def _nested(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, dict):
        return {k: _nested(f, v) for k, v in value.items()}
    if isinstance(value, tuple):
        items: list[Any] = [v if isinstance(v, float) else _nested(f, v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    raise TypeError(f"a lifted function must only return Tensors, got {type(value).__name__}")


torch.func.vmap(lambda t: t)(torch.zeros(1))  # loads the rules that lifted operations need
