"""`--dtype bfloat16`: what is rounded and what is not, and that the contract holds up to the rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lifelong.experiments import contract as checks
from lifelong.experiments.contract import Subject
from lifelong.experiments.prepare import prepare
from lifelong.learning.importance import example_sums, fisher
from lifelong.learning.losses import cross_entropy_vjp
from lifelong.learning.schedule import batches, plan
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Gate, Net
from lifelong.networks.precision import LOW, in_bfloat16
from lifelong.randomness import generator
from lifelong.spec import expression
from lifelong.spec.run import Options

ULP = 2.0**-8  # of bfloat16, relative


@dataclass(frozen=True)
class Low(Subject):
    """A strategy under test on a network in bfloat16."""

    def make(self, net: Any, seed: int = 0) -> Any:
        return super().make(in_bfloat16(net), seed)

    def lanes(self, at: list[int], stacked: bool = True, dtype: torch.dtype = torch.float32,
              hyper: Any = None) -> Any:
        return super().lanes(at, stacked, torch.float32, hyper)


def subject(text: str) -> Low:
    return Low(expression.parse(text))


STRATEGIES = ["finetune", "er + ewc", "derpp", "lwf", "mir", "xdg"]


@pytest.mark.parametrize("text", STRATEGIES)
def test_it_resumes_to_the_same_bits(text):
    assert checks.resumes_to_the_same_bits(subject(text)) is None
    assert checks.observe_is_pure(subject(text)) is None


@pytest.mark.parametrize("text", STRATEGIES)
def test_a_seed_in_a_stack_is_itself_up_to_the_rounding(text):
    many, alone = (checks._steps(subject(text).lanes(*how)) for how in (([0, 3, 6],), ([3], False)))
    for step, (a, b) in enumerate(zip(many, alone, strict=True)):
        assert checks._difference(checks._lane(a, 1), b) < 4 * ULP, f"step {step + 1}"
        if step == 4:
            break


def test_what_is_kept_is_float32_and_what_is_calculated_is_rounded():
    net = mlp((8,), 6, (12,))
    params = net.init(generator(0))
    x = torch.randn(5, 8, generator=generator(1))
    low = in_bfloat16(net)
    expected = net.apply({k: p.to(LOW) for k, p in params.items()}, x.to(LOW)).float()
    assert torch.equal(low.apply(params, x), expected) and low.dtype is LOW
    assert not torch.equal(expected, net.apply(params, x))
    assert low.features is not None and low.features(params, x).dtype == torch.float32
    learner = subject("er + ewc").lanes([0], False)
    state = learner.init()
    for _, batch in batches(learner, plan(learner.stream, [0], 0, "task", checks.BUDGET), 0, 0):
        state, _ = learner.observe(state, batch)
    kinds: set[torch.dtype] = set()
    checks.tree(lambda leaf: kinds.add(leaf.dtype), state)
    assert LOW not in kinds and torch.float32 in kinds


def test_every_pass_of_a_network_is_rounded_whatever_passes_a_network_has():
    seen = []

    def probe(params, x, *more):
        seen.extend([params["w"].dtype, x.dtype, *(t.dtype for t in more if t is not None)])
        return x

    passes = [name for name in Net._fields if "Callable[[Params" in str(Net.__annotations__[name])]
    assert passes == ["apply", "features", "vjp", "fresh", "train"]
    net = Net(init=lambda g: {}, **dict.fromkeys(passes, probe), gate=Gate(probe, probe))
    low, x = in_bfloat16(net), torch.ones(2, 3)
    for f in (*(getattr(low, name) for name in passes), low.gate.mask, low.gate.features):
        seen.clear()
        assert f({"w": torch.ones(2)}, x).dtype == torch.float32
        assert seen == [LOW, LOW]
    seen.clear()
    low.gate.features({"w": torch.ones(2)}, x, x)  # a mask is rounded, real examples and random numbers are not
    low.train({"w": torch.ones(2)}, x, x > 0, torch.ones(1, dtype=torch.float64))
    assert seen == [LOW, LOW, LOW, LOW, LOW, torch.bool, torch.float64]


@pytest.mark.parametrize("lanes", [(), (3,)])
def test_the_derivative_by_hand_is_autograds_of_the_rounded_network(lanes):
    net, low = mlp((8,), 6, (12,)), in_bfloat16(mlp((8,), 6, (12,)))
    params = net.init(generator(0))
    x, y = torch.randn(*lanes, 5, 8, generator=generator(1)), torch.arange(5).expand(*lanes, 5)
    stacked = {k: p.expand(*lanes, *p.shape).clone().requires_grad_() for k, p in params.items()}
    apply = torch.func.vmap(low.apply) if lanes else low.apply
    scores = apply(stacked, x)
    _, towards = cross_entropy_vjp(scores.detach(), y, torch.full(y.shape, 0.2), None)
    wanted = dict(zip(stacked, torch.autograd.grad(scores, list(stacked.values()), towards), strict=True))
    assert low.vjp is not None
    answers, back = low.vjp({k: p.detach() for k, p in stacked.items()}, x)
    torch.testing.assert_close(answers, scores.detach(), rtol=2 * ULP, atol=ULP)
    for name, grad in back(towards, stacked.keys()).items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, wanted[name], rtol=4 * ULP, atol=ULP / 10)


def test_importance_of_linear_layers_is_still_found_layer_by_layer():
    lanes = subject("ewc").lanes([0], False)
    low, pool = in_bfloat16(mlp((8,), 6, (12,))), lanes.pool
    params = low.init(generator(0))
    rows, weight = torch.arange(40), torch.full((40,), 1 / 40)
    fast = fisher(low, params, pool, rows, weight, "empirical")
    x, y = pool.fetch(rows)
    every = torch.ones(len(y), pool.n_classes, dtype=torch.bool)
    slow = example_sums(low, params, x, y, weight, every, "empirical")
    for name in params:
        torch.testing.assert_close(fast[name], slow[name], rtol=8 * ULP, atol=ULP * float(slow[name].max()))


def test_convolutions_learn_in_it_as_in_float32():
    net = conv4((1, 16, 16), 3, width=8)
    y = torch.arange(3).repeat(4)
    x = torch.randn(12, 1, 16, 16, generator=generator(1)) + y.view(-1, 1, 1, 1)
    first = []
    for one in (net, in_bfloat16(net)):
        params = {k: p.requires_grad_() for k, p in net.init(generator(0)).items()}
        for step in range(20):
            loss = torch.nn.functional.cross_entropy(one.apply(params, x), y)
            grads = torch.autograd.grad(loss, list(params.values()))
            if step == 0:
                first.append(torch.cat([g.flatten() for g in grads]))
            for p, g in zip(params.values(), grads, strict=True):
                p.data -= 0.1 * g
        assert float(loss.detach()) < 0.7  # 1.1 at first
    assert float(torch.nn.functional.cosine_similarity(*first, dim=0)) > 0.99
    assert not torch.equal(*first)


def test_the_record_of_a_run_says_so_and_nothing_else_changes_in_it():
    low, full = (prepare("split-digits", ["er"], Options(seeds=1, dtype=dtype)) for dtype in ("bfloat16", "float32"))
    assert low.specs[0].to_json() == full.specs[0].to_json() | {"dtype": "bfloat16"}


OBJECT = """
class Mine:
    def __init__(self, n_classes):
        self.n = n_classes
    def observe(self, x, y, task):
        return 0.0
    def end_task(self):
        pass
    def predict(self, x):
        return x.new_zeros(len(x), self.n)
"""


def test_what_has_a_network_of_its_own_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text(OBJECT)
    with pytest.raises(ValueError, match="a network of its own, which dtype='bfloat16' would leave as it is"):
        prepare("split-digits", [f"{tmp_path / 'mine.py'}:Mine"], Options(seeds=1, dtype="bfloat16"))
    with pytest.raises(ValueError, match="dtype must be one of"):
        Options(dtype="float16")
