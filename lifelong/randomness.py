"""Which random numbers anything gets: a function of who asks, never of what ran before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `names`, for example `generator(seed, task, "er")`.

    The same names give the same numbers in every process, on every device and in every order of asking, so a resumed
    run needs no saved generator state, and a part added to a sum leaves the numbers of the others alone.
    """
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def many(u: Tensor, count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) made of one, `u` 0-d float64: for steps that need more than `draws` should ask.

    Of `u` [..., 1] as many for each, [..., count]; the first of them are the same whatever `count` is.

    Integers only, so every device and every lane of a stack gets the same; other `u` give unrelated numbers.

    Source: SplitMix64 (Steele, Lea & Flood 2014) from the state u * 2^53.
    """
    state = (u * 2.0**53).long() * -0x61C8864680B583EB  # neighbouring u must not share a run of states
    bits = (torch.arange(1, count + 1, device=u.device) * -0x61C8864680B583EB) + _mixed(state)
    return ((_mixed(bits) >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & (2**33 - 1))
