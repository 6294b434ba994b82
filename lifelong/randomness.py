"""Random numbers that depend only on the names they are drawn for, never on what was drawn before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by a hash of `names`, for example `generator(seed, task, "er")`.

    The same names give the same numbers in every process, for every device and in any order of calls. A resumed run
    therefore needs no saved generator state, and adding a part to a sum does not change the numbers of the others.
    """
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def many(u: Tensor, count: int) -> Tensor:
    """`count` uniform float64 numbers in [0, 1) derived from one, for a step that needs more than it should draw.

    Args:
        u: one uniform float64 number in [0, 1), 0-d; or a batch [..., 1] of them, which gives [..., count].
        count: how many numbers; the first ones do not depend on it.

    The arithmetic is on integers, so every device and every lane of a stack gets the same numbers. Different `u` give
    unrelated numbers.

    Source: SplitMix64 (Steele, Lea & Flood 2014) from the state u * 2^53.
    """
    state = (u * 2.0**53).long() * -0x61C8864680B583EB  # spreads neighbouring `u`, whose states would otherwise overlap
    bits = (torch.arange(1, count + 1, device=u.device) * -0x61C8864680B583EB) + _mixed(state)
    return ((_mixed(bits) >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return bits ^ ((bits >> 31) & (2**33 - 1))
