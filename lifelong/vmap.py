"""Functions of one lane as functions of a stack of lanes; the one place that knows torch's private names for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

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


class Deferred:
    """A value that is made when it is first asked for, for example lifted when a hook first reads it."""

    __slots__ = ("_make", "_value")

    def __init__(self, value: Any = None, make: Callable[[], Any] | None = None) -> None:
        self._value, self._make = value, make

    @property
    def value(self) -> Any:
        """The value itself."""
        if self._make is not None:
            self._value, self._make = self._make(), None
        return self._value


def resolved(value: Any) -> Any:
    """`value`, or what it stands for where it is deferred."""
    return value.value if isinstance(value, Deferred) else value


def tree(f: Callable[..., Any], *states: Any) -> Any:
    """`f` over the leaves of nested dicts of the same shape."""
    if isinstance(states[0], dict):
        return {k: tree(f, *(s[k] for s in states)) for k in states[0]}
    return f(*states)


def lift(f: Callable[..., Any], n: int, *args: Any) -> Any:
    """`torch.func.vmap(f)(*args)` over the leading axis [n] of every tensor in nested dicts and tuples.

    A deferred argument is lifted when `f` first asks for it: every tensor that is lifted costs about a microsecond.
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
    """`lift` by `torch.func.vmap` itself, which takes nothing but tensors and returns nothing else."""
    leaves, shape = tree_flatten(tree_map(resolved, args))
    out: list[Any] = []

    def tensors(*given: Tensor) -> list[Tensor]:
        found = iter(given)
        every = [next(found) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        out[:] = tree_flatten(f(*tree_unflatten(every, shape)))
        return [leaf for leaf in out[0] if isinstance(leaf, Tensor)]

    lifted = iter(torch.func.vmap(tensors)(*(leaf for leaf in leaves if isinstance(leaf, Tensor))))
    return tree_unflatten([next(lifted) if isinstance(leaf, Tensor) else leaf for leaf in out[0]], out[1])


def _nested(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`f` of every tensor in nested dicts and tuples; called some fifty times a step, so kinds are compared by `is`."""
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        return f(value)
    if kind is dict:
        return {k: _nested(f, v) for k, v in value.items()}
    if kind is Deferred:
        return Deferred(make=lambda: _nested(f, value.value))
    if isinstance(value, tuple):
        items = [v if type(v) is float or type(v) is int else _nested(f, v) for v in value]
        return tuple(items) if kind is tuple else kind(*items)
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {k: _nested(f, v) for k, v in value.items()}
    if kind is slice:
        return value
    raise TypeError(f"a lifted function must only return Tensors, got {kind.__name__}")


torch.func.vmap(lambda t: t)(torch.zeros(1))  # loads the rules that lifted operations need
