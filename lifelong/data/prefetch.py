"""Fetching examples that are kept in host memory because they do not fit on the device, on demand or in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

AHEAD = 3  # batches gathered in advance


@torch.library.custom_op("lifelong::gathered", mutates_args=())
def gathered(x: Tensor, rows: Tensor) -> Tensor:
    """The examples `rows` [B] of `x`, copied from host memory to the device of `rows`; works inside `torch.vmap`."""
    return x.index_select(0, rows.cpu()).to(rows.device)


@gathered.register_vmap
def _(info: Any, dims: tuple[int | None, int | None], x: Tensor, rows: Tensor) -> tuple[Tensor, int]:
    rows = rows.movedim(dims[1] or 0, 0)  # only `rows` has lanes: all lanes share `x`
    return gathered(x, rows.flatten()).view(*rows.shape, *x.shape[1:]), 0


class Ahead:
    """Gathers batches on a background thread before they are needed.

    For a CUDA device it copies through pinned memory on a CUDA stream of its own, so copying and training overlap.

    Args:
        x: the examples [N, ...], in host memory.
        device: the device of the batches.
    """

    def __init__(self, x: Tensor, device: torch.device) -> None:
        self._x, self._device = x, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="examples")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._todo: deque[tuple[Tensor, Tensor]] = deque()
        self._made: deque[tuple[Tensor, Future[tuple[Tensor, Any]]]] = deque()

    def expect(self, batches: Sequence[Tensor], examples: Sequence[Tensor]) -> None:
        """Starts to gather the next batches; earlier requests are dropped.

        Args:
            batches: the tensors of rows that `take` will be called with, in this order.
            examples: for each batch, a tensor of the same shape on the CPU with the indices into `x`.
        """
        for _, future in self._made:
            future.cancel()
        self._made.clear()
        self._todo = deque(zip(batches, examples, strict=True))
        self._fill()

    def take(self, batch: Tensor) -> Tensor | None:
        """The examples [*batch.shape, ...] of `batch`, or None if `batch` is none of the tensors given to `expect`.

        A batch is recognised by identity, and the batches before it are dropped.
        """
        while self._made and self._made[0][0] is not batch:
            if all(expected is not batch for expected, _ in (*self._made, *self._todo)):
                return None
            self._made.popleft()
            self._fill()
        if not self._made:
            return None
        x, event = self._made.popleft()[1].result()
        self._fill()
        if event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(event)
            x.record_stream(current)
        return x

    def _fill(self) -> None:
        while self._todo and len(self._made) < AHEAD:
            batch, examples = self._todo.popleft()
            self._made.append((batch, self._thread.submit(self._gather, examples)))

    def _gather(self, examples: Tensor) -> tuple[Tensor, Any]:
        shape = (*examples.shape, *self._x.shape[1:])
        if self._stream is None:
            return self._x.index_select(0, examples.flatten()).view(shape), None
        # The allocator of pinned memory reuses a buffer only after the copy out of it has finished.
        buffer = torch.empty(examples.numel(), *self._x.shape[1:], dtype=self._x.dtype, pin_memory=True)
        torch.index_select(self._x, 0, examples.flatten(), out=buffer)
        with torch.cuda.stream(self._stream):
            x = buffer.to(self._device, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return x.view(shape), event
