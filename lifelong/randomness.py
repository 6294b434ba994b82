"""Which random numbers anything gets: a function of who asks, never of what ran before."""

from __future__ import annotations

import hashlib

import torch


def generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `names`, for example `generator(seed, task, "er")`.

    The same names give the same numbers in every process, on every device and in every order of asking, so a resumed
    run needs no saved generator state, and a part added to a sum leaves the numbers of the others alone.
    """
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
