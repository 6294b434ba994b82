"""The global state of torch and of the process, which code of a user may change and must not change for others."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def _set_environment(value: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(value)


# What is kept: how it is read, and how it is set.
_KEPT: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)),
    (lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value)),
    (os.getcwd, os.chdir),
    (lambda: dict(os.environ), _set_environment),
)


@contextmanager
def kept() -> Iterator[None]:
    """A context after which global state is as it was before: torch's default type, device and precision, its number of
    threads, whether it records gradients, the working folder, environment variables, and filters of warnings."""
    before = []
    for read, write in _KEPT:
        with contextlib.suppress(OSError):  # of a working folder that is gone
            before.append((read, write, read()))
    try:
        with warnings.catch_warnings():
            yield
    finally:
        for read, write, value in before:
            with contextlib.suppress(OSError):
                if _now(read) != value:
                    write(value)


def _now(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OSError:
        return None
