"""Torch modules as networks: batch normalisation, dropout and buffers, in training and in answering."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from test_batch_norm import small, steps
from torch import Tensor, nn

import lifelong
from lifelong.experiments.contract import BUDGET
from lifelong.learning import lanes as stacks
from lifelong.learning.composition import gradient_learner
from lifelong.learning.lanes import Lanes
from lifelong.learning.learner import NETWORK
from lifelong.learning.losses import batch_loss
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Part
from lifelong.learning.schedule import batches, plan
from lifelong.networks import module as modules
from lifelong.networks.interception import Pass
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.networks.precision import in_bfloat16
from lifelong.randomness import generator, many
from lifelong.vmap import lift

U = torch.tensor([0.375], dtype=torch.float64)
REAL = torch.tensor([True, True, False, True, True])


def some(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def everyone(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.bool)


def loaded(make: Callable[[], nn.Module], net: Net, seed: int = 0) -> tuple[nn.Module, Params]:
    """The module and the network with the same parameters, in float64."""
    module = make().double()
    params = {k: p.double() for k, p in net.init(generator(seed)).items()}
    for k, p in params.items():  # scales of 1 and shifts of 0 would hide a mistake
        params[k] = p + 0.1 * torch.rand(p.shape, generator=generator(k), dtype=torch.float64)
    module.load_state_dict(params, strict=False)
    return module, params


# ---- batch normalisation

NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (8,)),
    "1d of sequences": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(24, 3)),
                        (2, 8)),
    "2d": (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)), (1, 4, 4)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 3)), (1, 3, 3, 3)),
    "momentum and eps": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, 1e-2, 0.3), nn.Linear(4, 3)), (8,)),
    "no scale": (lambda: nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3)), (8,)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_batch_normalisation_is_torchs_on_the_examples_that_are_real(kind: str) -> None:
    make, shape = NORMS[kind]
    net = from_module(make, torch.ones(2, *shape))
    assert net.still == ("1.running_mean", "1.running_var") and net.draws == 0
    for real in (everyone(5), REAL):
        (module, params), x = loaded(make, net), some(5, *shape)
        scores, moved = net.train(params, x, real, None)
        torch.testing.assert_close(scores[real], module.train()(x[real]))
        torch.testing.assert_close(moved, {k: b for k, b in module.named_buffers() if k in net.still})
        torch.testing.assert_close(net.apply(params | moved, x), module.eval()(x))


@pytest.mark.parametrize("kind", NORMS)
def test_what_stands_in_the_place_of_an_example_that_is_not_real_does_not_count(kind: str) -> None:
    make, shape = NORMS[kind]
    net = from_module(make, torch.ones(2, *shape))
    params, x = net.init(generator(0)), some(5, *shape, dtype=torch.float32)
    for passed in (net.train, lambda *given: tuple(lifted(net, *given))):
        one, other = (passed(params, at, REAL, None) for at in (x, torch.where(REAL.view(5, *(1 for _ in shape)), x, 9)))
        assert torch.equal(one[0][REAL], other[0][REAL])
        assert all(torch.equal(one[1][k], other[1][k]) for k in net.still)


def lifted(net: Net, params: Params, x: Tensor, real: Tensor, u: Tensor | None) -> tuple[Tensor, Params]:
    """`Net.train` of one lane by the lift of a stack of two."""
    two = [{k: torch.stack([p, p]) for k, p in params.items()}, *(torch.stack([t, t]) for t in (x, real))]
    if u is None:
        scores, moved = lift(lambda p, x, real: net.train(p, x, real, None), 2, *two)
    else:
        scores, moved = lift(net.train, 2, *two, torch.stack([u, u]))
    return scores[1], {k: v[1] for k, v in moved.items()}


class Twice(nn.Module):
    """One layer of normalisation that is applied twice, and weights that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(self.norm(self.first(x)).relu()))


def test_a_layer_that_is_applied_twice_moves_its_statistics_twice_and_shared_weights_are_one_parameter() -> None:
    net = from_module(Twice, torch.ones(2, 8))
    (module, params), x = loaded(Twice, net), some(5, 8)
    assert "second.weight" not in params
    scores, moved = net.train(params, x, everyone(5), None)
    torch.testing.assert_close(scores, module.train()(x))
    torch.testing.assert_close(moved, {k: b for k, b in module.named_buffers() if k in net.still})
    grads = torch.func.grad(lambda p: net.train(p, x, everyone(5), None)[0].square().sum())(params)
    module(x).square().sum().backward()
    torch.testing.assert_close(grads["first.weight"], module.first.weight.grad)


class Frozen(nn.Module):
    """A layer of normalisation that stays in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.free, self.out = nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.free(self.norm(x)))


class Block(nn.BatchNorm1d):
    """Normalisation and what follows it in one layer, by a function of torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training).relu()


def test_statistics_that_training_leaves_are_constants_and_subclasses_do_what_they_do() -> None:
    net = from_module(Frozen, torch.ones(2, 8))
    assert net.still == ("free.running_mean", "free.running_var")
    (module, params), x = loaded(Frozen, net), some(5, 8)
    torch.testing.assert_close(net.train(params, x, everyone(5), None)[0], module.train()(x))
    net = from_module(lambda: Block(8), torch.ones(2, 8))
    (module, params) = loaded(lambda: Block(8), net)
    torch.testing.assert_close(net.train(params, x, everyone(5), None)[0], module.train()(x))


def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None, num_classes=4)


def test_torchvisions_resnet18_trains_as_it_does_in_torch() -> None:
    net = from_module(resnet, torch.randn(2, 3, 32, 32, generator=generator("x")))
    assert len(net.still) == 40 and net.head == ("fc.weight", "fc.bias")
    (module, params), x, y = loaded(resnet, net), some(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    leaves = {k: p.requires_grad_(k not in net.still) for k, p in params.items()}
    scores, moved = net.train(leaves, x, everyone(6), None)
    F.cross_entropy(scores, y).backward()
    F.cross_entropy(module.train()(x), y).backward()
    for k, p in module.named_parameters():
        torch.testing.assert_close(leaves[k].grad, p.grad)
    torch.testing.assert_close(moved, {k: b for k, b in module.named_buffers() if k in net.still})
    torch.testing.assert_close(net.apply(params | moved, x), module.eval()(x))


# ---- random numbers


def numbers(call: int, *shape: int) -> Tensor:
    """What the `call`-th dropout of a pass with the number `U` is made of."""
    count = torch.Size(shape).numel()
    return many(many(U[0], call)[-1], count).view(shape)


@pytest.mark.parametrize(("make", "dropped"), [
    (lambda: nn.Dropout(0.4), lambda x: x * (numbers(1, 5, 4, 6) >= 0.4) / 0.6),
    (lambda: nn.Dropout(1.0), lambda x: x * 0),
    (lambda: nn.Dropout1d(0.4), lambda x: x * (numbers(1, 5, 4, 1) >= 0.4) / 0.6),
    (lambda: nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.4)),
     lambda x: x * (numbers(1, 5, 4, 6) >= 0.2) / 0.8 * (numbers(2, 5, 4, 6) >= 0.4) / 0.6),
])
def test_dropout_is_made_of_the_steps_number(make: Callable[[], nn.Module], dropped: Callable[[Tensor], Tensor]) -> None:
    net = from_module(lambda: nn.Sequential(make(), nn.Flatten()), torch.ones(2, 4, 6))
    x = some(5, 4, 6)
    assert net.draws == 1
    torch.testing.assert_close(net.train({}, x, REAL, U)[0], dropped(x).flatten(1))
    assert torch.equal(net.apply({}, x), x.flatten(1))


@pytest.mark.parametrize(("make", "axes"), [
    (nn.Dropout1d, 3), (nn.Dropout2d, 4), (nn.Dropout3d, 5), (nn.FeatureAlphaDropout, 4)])
def test_channels_are_dropped_whole(make: Any, axes: int) -> None:
    x = torch.ones(50, 40, *(3,) * (axes - 2), dtype=torch.float64)
    with Pass({}, (), u=U):
        out = make(0.25)(x).flatten(2)
        alone = make(0.25)(x[0]).flatten(1) if axes != 4 else out[0]
    assert all(torch.equal(z, z[..., :1].expand(z.shape)) for z in (out, alone))
    assert float((out[..., 0] != out[..., 0].max()).double().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("make", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_keeps_mean_and_variance(make: Any) -> None:
    x = some(400, 400)
    with Pass({}, (), u=U):
        out = make(0.3)(x)
    assert float(out.mean()) == pytest.approx(0, abs=0.02) and float(out.var()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("options", [
    {}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True},
    {"attn_mask": some(6, 6)}, {"attn_mask": some(6, 6) > -1}])
def test_attention_is_torchs_where_nothing_is_dropped(options: dict[str, Any]) -> None:
    heads = 2 if "enable_gqa" in options else 4
    q, k, v = some(3, 4, 6, 5), some(3, heads, 6, 5, seed=2), some(3, heads, 6, 5, seed=3)
    wanted = F.scaled_dot_product_attention(q, k, v, **options)
    with Pass({}, (), u=U):
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=1e-30, **options)
        half = F.scaled_dot_product_attention(q, k, v, dropout_p=0.5, **options)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(half, wanted)


class Transformer(nn.Module):
    """One layer of self-attention over five places, whose table is random."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(4, 8), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout, batch_first=True)
        self.register_buffer("place", torch.randn(4, 8))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def features(self, x: Tensor) -> Tensor:
        return self.layer(self.embed(x.flatten(1, -2)) + self.place[self.order]).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


def test_a_transformer_drops_in_its_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    uniform = Pass.uniform
    monkeypatch.setattr(Pass, "uniform", lambda self, shape: (asked.append(tuple(shape)), uniform(self, shape))[1])
    net = from_module(Transformer, torch.ones(2, 1, 4, 4))
    asked.clear()
    params, x = net.init(generator(0)), some(3, 1, 4, 4, dtype=torch.float32)
    once, again = (net.train(params, x, everyone(3), U)[0] for _ in range(2))
    assert asked[:4] == [(3, 2, 4, 4), (3, 4, 8), (3, 4, 16), (3, 4, 8)]  # 3 examples of 2 heads over 4 x 4 places, ...
    assert torch.equal(once, again) and not torch.equal(once, net.train(params, x, everyone(3), U / 2)[0])
    with torch.no_grad():  # where torch would take a fast path of its own
        assert torch.equal(net.apply(params, x), net.apply(params, x))
    assert net.features(params, x).shape == (3, 8)


def test_a_transformer_without_dropout_is_torchs() -> None:
    net = from_module(lambda: Transformer(0.0), torch.ones(2, 1, 4, 4))
    assert net.train is None and net.draws == 0
    params, module = net.init(generator(0)), modules._drawn(lambda: Transformer(0.0), 0)
    x = some(3, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(net.apply(params, x), torch.func.functional_call(module, params, (x,)))


def test_a_training_pass_without_its_numbers_is_refused() -> None:
    net = from_module(lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout()), torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"needs the step's random numbers, as many as `Net\.draws` says"):
        net.train(net.init(generator(0)), torch.ones(2, 4), everyone(2), None)


# ---- constants


def test_constants_follow_the_examples_and_are_the_same_in_every_process() -> None:
    before = torch.get_rng_state()
    net, other = (from_module(Transformer, torch.ones(2, 1, 4, 4)) for _ in range(2))
    params, x = net.init(generator(0)), some(3, 1, 4, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert "place" not in params and "order" not in params
    wide = {k: p.double() for k, p in params.items()}
    assert torch.equal(net.apply(wide, x), other.apply(wide, x))
    assert net.apply(wide, x).dtype == torch.float64
    low = in_bfloat16(net).apply(params, x.float())
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, net.apply(params, x.float()), rtol=0.1, atol=0.1)


class Adapter(nn.Module):
    """A frozen layer below one that is trained, and a trained scale without axes."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.body, self.head, self.scale = nn.Linear(8, 12), nn.Linear(12, 6), nn.Parameter(torch.tensor(1.0))
        self.body.requires_grad_(not frozen)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1)).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(self.features(x))


def test_frozen_parameters_are_constants_that_no_strategy_sees() -> None:
    net = from_module(Adapter, some(3, 8, dtype=torch.float32))
    module, params = loaded(Adapter, net)
    assert set(params) == {"head.weight", "head.bias", "scale"} and net.head == ("head.weight", "head.bias")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module.body.load_state_dict(Adapter().body.state_dict())  # drawn once, whatever the seed of the run
    x = some(5, 8)
    torch.testing.assert_close(net.apply(params, x), module(x), rtol=1e-12, atol=1e-12)
    got = torch.func.grad(lambda p: net.apply(p, x).square().sum())(params)
    module(x).square().sum().backward()
    torch.testing.assert_close(got["scale"], module.scale.grad, rtol=1e-12, atol=1e-12)

    class Still(Adapter):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)

    with pytest.raises(ValueError, match="Still has nothing to train: none of its parameters has requires_grad=True"):
        from_module(Still, some(3, 8, dtype=torch.float32))


def test_a_network_knows_the_shapes_of_its_parameters() -> None:
    for net in (from_module(resnet, some(2, 3, 32, 32, dtype=torch.float32)), from_module(Twice, torch.ones(2, 8))):
        params = net.init(generator(0))
        assert [(k, tuple(p.shape)) for k, p in params.items()] == list(shapes_of(net).items())
        assert set(net.still) <= set(params)


# ---- learning


def both() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3),
                         nn.Linear(12, 4))


SUBJECTS = {"both": from_module(both, torch.randn(3, 1, 4, 4, generator=generator("x"))),
            "transformer": from_module(Transformer, torch.randn(3, 1, 4, 4, generator=generator("x")))}


def lanes(at: list[int], net: Net, parts: dict[str, Part] | None = None, stacked: bool = True,
          dtype: torch.dtype = torch.float64) -> Lanes:
    learner = gradient_learner(net, sgd(lr=0.1, momentum=0.9, weight_decay=0.01), parts or {})
    return Lanes(small(), [0, 1], at, lambda hyper: learner, dtype=dtype, stacked=stacked)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_a_lane_of_a_stack_has_the_bits_of_its_run_alone(kind: str) -> None:
    net = SUBJECTS[kind]
    together = steps(lanes([0, 1], net))[0]["params"]
    alone = steps(lanes([1], net, stacked=False))[0]["params"]
    assert all(torch.equal(together[k][1], alone[k]) for k in alone)


@pytest.mark.parametrize("kind", SUBJECTS)
def test_lanes_that_are_lifted_learn_as_lanes_one_by_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = SUBJECTS[kind]
    looped = steps(lanes([0, 1], net))
    monkeypatch.setattr(stacks, "FAST", False)
    lifted = steps(lanes([0, 1], net))
    torch.testing.assert_close(lifted[1], looped[1])
    torch.testing.assert_close(lifted[0]["params"], looped[0]["params"])


def test_a_network_with_both_learns_as_a_loop_in_torch_that_drops_by_the_same_numbers() -> None:
    net = SUBJECTS["both"]
    stack = lanes([1], net, stacked=False)
    state = stack.init()
    module = both().double().train()
    module.load_state_dict({k: p.clone() for k, p in state["params"].items()}, strict=False)
    layers, optimizer = list(module), torch.optim.SGD(module.parameters(), 0.1, 0.9, weight_decay=0.01)
    for _, batch in batches(stack, plan(stack.stream, [0, 1], 0, "task", BUDGET), 0, 0):
        there = batch.rows >= 0
        keep = many(many(batch.u[NETWORK][0], 1)[-1], len(batch.rows) * 12).view(-1, 12) >= 0.3
        x = stack.stream.x[batch.rows[there]]
        for layer in layers:
            x = x * keep[there] / 0.7 if isinstance(layer, nn.Dropout) else layer(x)
        optimizer.zero_grad()
        F.cross_entropy(x, stack.stream.y[batch.rows[there]]).backward()
        optimizer.step()
        state, _ = stack.observe(state, batch)
    for k, p in module.state_dict().items():
        if k in state["params"]:
            torch.testing.assert_close(state["params"][k], p)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_hook_that_differentiates_the_training_loss_drops_as_the_step_does(stacked: bool) -> None:
    def same(view: Any, grads: Params) -> Params:
        own = torch.func.grad(batch_loss(view.net, view.pool, view.batch.rows, view.batch.weight))(view.params)
        return {k: torch.where((own[k] - g).abs().amax() < 1e-12, g, torch.nan) for k, g in grads.items()}

    state, losses = steps(lanes([0, 1] if stacked else [0], SUBJECTS["both"], {"same": Part(grads=same)}, stacked), 3)
    assert all(bool(p.isfinite().all()) for p in state["params"].values()) and bool(losses.isfinite().all())


def test_in_bfloat16_the_statistics_and_the_random_numbers_stay_in_full() -> None:
    net, low = SUBJECTS["both"], in_bfloat16(SUBJECTS["both"])
    params, x = net.init(generator(0)), some(5, 1, 4, 4, dtype=torch.float32)
    u = torch.tensor([0.123456789], dtype=torch.float64)  # rounded, it would be another number, with another mask
    (scores, moved), (others, after) = (one.train(params, x, REAL, u) for one in (net, low))
    torch.testing.assert_close(others[REAL], scores[REAL], rtol=0.05, atol=0.05)
    for k in net.still:
        torch.testing.assert_close(after[k], moved[k], rtol=0.05, atol=0.05)
        assert after[k].dtype == torch.float32 and not torch.equal(after[k], after[k].bfloat16().float())


MODEL = """
import torch
from torch import nn
from torch.nn import functional as F

class Own(nn.Module):
    def __init__(self, shape, n_classes):
        super().__init__()
        self.hidden, self.norm, self.out = nn.Linear(64, 10), nn.BatchNorm1d(10), nn.Linear(10, n_classes)

    def forward(self, x):
        return self.out(F.dropout(self.norm(self.hidden(x.flatten(1))).relu(), 0.2, self.training))
"""


def test_a_run_takes_a_module_in_a_file_with_both(tmp_path: Any) -> None:
    (tmp_path / "own.py").write_text(MODEL)
    model = f"{tmp_path / 'own.py'}:Own"
    run, again = (lifelong.run("split-digits", "er + ewc", model=model, seeds=2, epochs=1, store=tmp_path / str(i))
                  for i in range(2))
    assert (run.accuracy == again.accuracy).all()


# ---- what is refused


class Several(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x


class Replaced(Counter):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + x.mean()
        return x


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


class Always(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, True)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.view(-1, 4)).view(len(x), -1)


@pytest.mark.parametrize(("make", "said"), [
    (Several, r"Several takes several inputs \(x, mask\)"),
    (Counter, "Counter changes its buffer seen when it is called"),
    (Replaced, "Replaced changes its buffer seen when it is called"),
    (lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
     r"Sequential changes its buffer 1\.\w+ when it is called"),
    (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)), r"changes its buffer parametrizations\.weight"),
    (Noisy, "Noisy draws random numbers by randn_like, which could not be repeated"),
    (Always, "Always draws random numbers in a pass that has none: dropout is for training alone"),
    (Pair, r"Pair must return scores \[2, classes\] for 2 examples, and returned a tuple"),
    (lambda: nn.Unflatten(1, (2, 4)), r"Unflatten must return scores .* returned a tensor \[2, 2, 4\]"),
    (lambda: nn.Linear(5, 3), r"Linear cannot be applied to a batch of 2 examples, \[2, 8\]: RuntimeError: mat1"),
    (lambda: nn.LazyLinear(3), "LazyLinear has lazy layers"),
    (lambda: nn.Sequential(nn.BatchNorm1d(8, momentum=None)), r"Sequential\.0 averages .* \(momentum=None\)"),
    (lambda: nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False)), "Sequential has batch normalisation without"),
    (Flat, "Flat has batch normalisation of 4 rows for 2 examples"),
])
def test_what_a_network_cannot_do_is_refused_where_it_is_made(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        from_module(make, torch.arange(16.0).view(2, 8))


class Maps(nn.Module):
    """A network whose `features` are maps, as those of torchvision's VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.out = nn.Conv2d(1, 3, 3), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x).flatten(1))


def test_maps_are_no_features() -> None:
    assert from_module(Maps, torch.ones(2, 1, 4, 4)).features is None


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training else x


def test_a_module_that_only_scales_in_training_is_trained_so() -> None:
    net = from_module(Branch, torch.ones(2, 3))
    assert net.train is not None and net.draws == 0 and net.still == ()
    assert torch.equal(net.train({}, torch.ones(2, 3), everyone(2), None)[0], torch.full((2, 3), 2.0))
    assert torch.equal(net.apply({}, torch.ones(2, 3)), torch.ones(2, 3))


SCALED = """
import math
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, d, c, scale):
        super().__init__()
        self.body, self.head, self.scale = nn.Linear(d, 12), nn.Linear(12, c), nn.Parameter(scale)

    def features(self, x):
        return self.body(x.flatten(1)).relu()

    def forward(self, x):
        return self.scale * self.head(self.features(x))

def without_axes(shape, n_classes): return Scaled(math.prod(shape), n_classes, torch.tensor(0.9))
def with_one(shape, n_classes): return Scaled(math.prod(shape), n_classes, torch.tensor([0.9]))
"""


@pytest.mark.parametrize("strategy", ["gem", "gss", "agem", "mir", "ewc", "mas", "si", "rwalk", "la_maml", "packnet", "mer"])
def test_a_parameter_without_axes_is_one_with_a_single_entry(strategy: str, tmp_path: Any) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    scenario = "task" if strategy == "packnet" else "class"
    one, other = (lifelong.run(f"split-digits(tasks=2, scenario='{scenario}')", strategy, seeds=2, steps=3, dtype="float64",
                               model=f"{tmp_path}/scaled.py:{name}") for name in ("without_axes", "with_one"))
    np.testing.assert_allclose(one.logs["loss"], other.logs["loss"], rtol=1e-12)
    np.testing.assert_array_equal(one.accuracy, other.accuracy)
