"""Many numbers made of one are those of the published generator, equal in every lane, and unrelated."""

from __future__ import annotations

import torch
from scipy.stats import chi2, kstest

from lifelong.randomness import many

MASK, GOLDEN = 2**64 - 1, 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    """SplitMix64's output function on unsigned integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_it_is_splitmix():
    for u in (0.0, 0.25, 0.123456789, 1 - 2.0**-53):
        state = mixed(int(u * 2**53) * GOLDEN & MASK)
        expected = [(mixed((state + GOLDEN * i) & MASK) >> 11) * 2.0**-53 for i in range(1, 8)]
        assert many(torch.tensor(u, dtype=torch.float64), 7).tolist() == expected


def test_numbers_are_uniform_within_and_across_streams_of_neighbouring_seeds():
    within = many(torch.tensor(0.3, dtype=torch.float64), 20_000)
    assert kstest(within.numpy(), "uniform").pvalue > 1e-3
    seeds = torch.arange(20_000, dtype=torch.float64) * 2.0**-53
    both = torch.func.vmap(lambda u: many(u, 2))(seeds)
    assert torch.equal(both[7], many(seeds[7], 2))
    assert kstest(both[:, 0].numpy(), "uniform").pvalue > 1e-3
    for pairs in (both, torch.stack([both[:-1, 0], both[1:, 0]], 1)):  # in 64 squares, as often in each
        counts = torch.bincount(((pairs * 8).long() * torch.tensor([8, 1])).sum(1), minlength=64).double()
        assert chi2.sf(float(((counts - len(pairs) / 64) ** 2).sum() / (len(pairs) / 64)), 63) > 1e-3
