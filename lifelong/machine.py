"""The memory of this machine: how much is free, and how the C library handles it."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch


def free(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
    with contextlib.suppress(OSError, ValueError):  # of a container that may take less than the machine has
        limits = Path("/sys/fs/cgroup")
        found.append(int((limits / "memory.max").read_text()) - int((limits / "memory.current").read_text()))
    return min(found, default=4 * 2**30)


def keep_pages() -> None:
    """Tells the C library to keep freed memory: a stack's temporaries are megabytes, and a page that is given back is
    faulted in again at the next step, which takes longer than the arithmetic on it (measured: up to 3 times the step).
    Nothing happens where the C library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            library.mallopt(option, 2**31 - 1)
