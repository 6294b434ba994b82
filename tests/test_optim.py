"""Optimizers move parameters as torch.optim does, one lane or many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.learning.optim import Optimizer, adam, sgd

SHAPES = {"a": (3, 4), "b": (5,), "c": ()}

CASES: dict[str, tuple[Optimizer, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (sgd(0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    "decay": (sgd(0.1, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01)),
    "both": (sgd(0.1, 0.5, 0.01), lambda p: torch.optim.SGD(p, 0.1, momentum=0.5, weight_decay=0.01)),
    "adam": (adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adam decayed": (adam(0.01, 0.8, 0.99, 1e-6, 0.1),
                     lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.99), 1e-6, weight_decay=0.1)),
}


def start(seed: int, lanes: int | None = None) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    first = () if lanes is None else (lanes,)
    return {k: torch.randn((*first, *shape), generator=g, dtype=torch.float64) for k, shape in SHAPES.items()}


def moved(optimizer: Optimizer, params: dict[str, Tensor], steps: list[dict[str, Tensor]],
          lanes: int | None = None) -> dict[str, Tensor]:
    """`params` after gradients `steps`, from the state of a single lane, stacked where there are lanes."""
    params = {k: p.clone() for k, p in params.items()}
    one = {k: p if lanes is None else p[0] for k, p in params.items()}
    state = {k: v.clone() if lanes is None else torch.stack([v] * lanes) for k, v in optimizer.init(one).items()}
    for grads in steps:
        optimizer.update(params, grads, state)
    return params


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_end_as_those_of_torch(case):
    ours, theirs = CASES[case]
    steps = [start(100 + i) for i in range(50)]
    params = {k: torch.nn.Parameter(p) for k, p in start(0).items()}
    optimizer = theirs(list(params.values()))
    for grads in steps:
        for k, p in params.items():
            p.grad = grads[k].clone()
        optimizer.step()
    for k, p in moved(ours, start(0), steps).items():
        torch.testing.assert_close(p, params[k].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_stack_of_lanes_moves_as_each_lane_alone(case):
    optimizer = CASES[case][0]
    params, steps = start(0, 3), [start(i, 3) for i in range(1, 9)]
    many = moved(optimizer, params, steps, 3)
    for lane in range(3):
        alone = moved(optimizer, {k: p[lane] for k, p in params.items()},
                      [{k: g[lane] for k, g in grads.items()} for grads in steps])
        for k, p in alone.items():
            assert torch.equal(many[k][lane], p), k


@pytest.mark.parametrize(("make", "name", "values"), [
    (sgd, "lr", [0.1, 0.01, 0.5]), (sgd, "momentum", [0.9, 0.5, 0.1]), (sgd, "weight_decay", [0.1, 0.0, 0.01]),
    (adam, "lr", [0.1, 0.01, 0.5]), (adam, "beta1", [0.9, 0.5, 0.0]), (adam, "beta2", [0.9, 0.999, 0.5]),
    (adam, "eps", [1e-8, 1e-3, 1.0]), (adam, "weight_decay", [0.1, 0.0, 0.01]),
])
def test_a_lane_with_a_number_of_its_own_moves_as_the_run_with_that_number(make, name, values):
    fixed: dict[str, Any] = {"momentum": 0.9} if make is sgd and name != "momentum" else {}
    params, steps = start(0, 3), [start(i, 3) for i in range(1, 9)]
    many = moved(make(**fixed, **{name: torch.tensor(values, dtype=torch.float64)}), params, steps, 3)
    for lane, value in enumerate(values):
        alone = moved(make(**fixed, **{name: value}), {k: p[lane] for k, p in params.items()},
                      [{k: g[lane] for k, g in grads.items()} for grads in steps])
        for k, p in alone.items():
            torch.testing.assert_close(many[k][lane], p, rtol=1e-13, atol=1e-13)


def test_update_leaves_the_gradients_it_was_given_alone():
    for optimizer, _ in CASES.values():
        grads = start(1)
        before = {k: g.clone() for k, g in grads.items()}
        moved(optimizer, start(0), [grads, grads])
        assert all(torch.equal(grads[k], before[k]) for k in grads)


@pytest.mark.parametrize(("make", "wrong"), [
    (sgd, {"lr": 0.0}), (sgd, {"lr": -1.0}), (sgd, {"momentum": 1.0}), (sgd, {"momentum": -0.1}),
    (sgd, {"weight_decay": -1.0}), (adam, {"lr": 0.0}), (adam, {"beta1": 1.0}), (adam, {"beta2": 1.0}),
    (adam, {"beta2": -0.5}), (adam, {"eps": -1e-8}),
])
def test_numbers_outside_their_documented_range_are_refused_by_name(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


@pytest.mark.parametrize("case", ["adam", "adam decayed"])  # which dgr trains its generator by
def test_inside_a_lift_it_moves_as_outside(case):
    optimizer = CASES[case][0]
    params, steps = start(0, 3), [start(i, 3) for i in range(1, 5)]

    def inside(params: dict[str, Tensor], *steps: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {k: v.expand(v.shape) + 0 * params["c"] for k, v in optimizer.init(params).items()}
        params = {k: p.clone() for k, p in params.items()}
        for grads in steps:
            optimizer.update(params, grads, state)
        return params

    lifted = torch.func.vmap(inside)(params, *steps)
    for k, p in moved(optimizer, params, steps, 3).items():
        torch.testing.assert_close(lifted[k], p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_may_lie_in_memory_in_any_order(case):
    optimizer = CASES[case][0]
    params, steps = start(0, 3), [start(i, 3) for i in range(1, 4)]
    turned = [{k: g.mT.contiguous().mT if g.dim() == 3 else g for k, g in grads.items()} for grads in steps]
    assert turned[0]["a"].stride() != params["a"].stride()
    want = moved(optimizer, params, steps, 3)
    for k, p in moved(optimizer, params, turned, 3).items():
        torch.testing.assert_close(p, want[k], rtol=1e-13, atol=1e-13)
