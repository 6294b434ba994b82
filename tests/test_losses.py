"""Losses and Fisher information against torch, and against numbers worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import value_of
from lifelong.strategies.isolate import xdg
from lifelong.strategies.regularise import ewc
from torch import Tensor, nn

from lifelong.data.pool import Pool
from lifelong.learning.importance import (
    LABELS,
    _drawn,
    _layer_sums,
    _Layers,
    example_sums,
    fisher,
    gradient_products,
    sensitivity,
)
from lifelong.learning.losses import (
    Loss,
    Slice,
    batch_loss,
    cross_entropy,
    cross_entropy_vjp,
    distillation,
    example_losses,
    penalty_gradient,
    squared_error,
)
from lifelong.learning.parts import Part, View
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params

SIX = torch.arange(6)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn(net: Net, seed: int = 0) -> Params:
    return {k: p.double() for k, p in net.init(torch.Generator().manual_seed(seed)).items()}


def pool(scenario: str = "class", shape: tuple[int, ...] = (8,)) -> Pool:
    classes = torch.eye(3, dtype=torch.bool).repeat_interleave(2, 1)
    return Pool(numbers(30, *shape), torch.arange(30) % 6, shape, classes, scenario, dtype=torch.float64)


def slice_of(scores: Tensor, y: Tensor, real: Tensor) -> Slice:
    weight = real.double() / real.sum().clamp(min=1)
    return Slice(torch.where(real, SIX[:len(y)], -1), weight, scores, y, scores)


def test_cross_entropy_is_torchs_mean_over_the_real_rows():
    scores, y = numbers(5, 6).requires_grad_(), torch.tensor([0, 5, 2, 2, 1])
    real = torch.tensor([True, True, False, True, False])
    want = F.cross_entropy(scores[real], y[real])
    weight = cross_entropy(slice_of(scores, y, real)).entropies["batch"]
    value, gradient = cross_entropy_vjp(scores.detach(), y, weight, None)
    torch.testing.assert_close(value, want.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(want, scores)[0])


def test_cross_entropy_of_no_rows_is_zero_and_has_no_gradient():
    empty = slice_of(numbers(3, 6), torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
    value, gradient = cross_entropy_vjp(empty.scores, empty.y, cross_entropy(empty).entropies["batch"], None)
    assert float(value) == 0 and not gradient.any()


def test_cross_entropy_among_competing_units_is_that_of_the_sub_head():
    scores, y = numbers(4, 6).requires_grad_(), torch.tensor([2, 3, 3, 2])
    competing = (SIX // 2 == 1).expand(4, 6)
    loss = cross_entropy(slice_of(scores, y, torch.ones(4, dtype=torch.bool)), competing=competing)
    want = F.cross_entropy(scores[:, 2:4], y - 2)
    torch.testing.assert_close(loss.values[0], want.detach())
    torch.testing.assert_close(loss.gradients["batch"], torch.autograd.grad(want, scores)[0])


@pytest.mark.parametrize("among", [None, [2, 3]])
def test_squared_error_is_the_mean_over_units_and_real_rows_and_its_gradient_is_torchs(among):
    scores, target, y = numbers(4, 6).requires_grad_(), numbers(4, 6, seed=1), torch.tensor([2, 3, 3, 2])
    real = torch.tensor([True, True, False, True])
    competing = None if among is None else (SIX // 2 == 1).expand(4, 6)
    loss = squared_error(slice_of(scores, y, real), target, 0.3, competing)
    units = slice(None) if among is None else among
    want = 0.3 * F.mse_loss(scores[real][:, units], target[real][:, units])
    torch.testing.assert_close(loss.values[0], want.detach())
    torch.testing.assert_close(loss.gradients["batch"], torch.autograd.grad(want, scores)[0])


def test_losses_add_and_scale_as_the_numbers_that_they_stand_for():
    scores, y, real = numbers(4, 6), torch.tensor([2, 3, 3, 2]), torch.ones(4, dtype=torch.bool)
    batch, target, x = slice_of(scores, y, real), numbers(4, 6, seed=1), torch.tensor(0.7, dtype=torch.float64)
    entropy, error = F.cross_entropy(scores, y), F.mse_loss(scores, target)
    total = (2 * cross_entropy(batch) + x * squared_error(batch, target) + x + cross_entropy(batch) * x) / 4
    torch.testing.assert_close(value_of(total, batch), (2 * entropy + x * error + x + x * entropy) / 4)
    torch.testing.assert_close(total.gradients["batch"], x * squared_error(batch, target).gradients["batch"] / 4)
    torch.testing.assert_close(total.entropies["batch"], batch.weight * (2 + x) / 4)


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"one number, a tensor without axes; got a tensor \[2\]"):
        Loss() + torch.zeros(2)
    with pytest.raises(ValueError, match="got a NoneType"):
        Loss() + None  # type: ignore[operator]


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_batch_loss_is_the_same_loss_as_a_function_of_the_parameters(scenario):
    net, lot = mlp((8,), 6, (5,)), pool(scenario)
    params = drawn(net)
    rows, weight = torch.tensor([3, 9, 14]), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    x, y = lot.fetch(rows)
    want = sum(float(w) * F.cross_entropy(net.apply(params, x[i:i + 1])[:, a:b], y[i:i + 1] - a)
               for i, w in enumerate(weight)
               for a, b in [(int(y[i]) // 2 * 2, int(y[i]) // 2 * 2 + 2) if scenario == "task" else (0, 6)])
    torch.testing.assert_close(batch_loss(net, lot, rows, weight)(params), want)
    torch.testing.assert_close((example_losses(net, lot, rows)(params) * weight).sum(), want)


def test_distillation_worked_by_hand():
    # T = 2, scores (0, 0) against a teacher's (2 ln 3, 0): q = (3/4, 1/4), p = (1/2, 1/2);
    # T^2 KL(q || p) = 4 (3/4 ln(3/2) + 1/4 ln(1/2)) = 3 ln 3 - 4 ln 2.
    scores, teacher = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[2 * math.log(3), 0]], dtype=torch.float64)
    got = distillation(scores, teacher, torch.tensor([True, True]), 2.0)
    assert got.item() == pytest.approx(3 * math.log(3) - 4 * math.log(2), abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("units", [[True] * 6, [True, True, False, False, True, False]])
def test_distillation_is_torchs_divergence_over_the_units(temperature, units):
    scores, teacher, on = numbers(4, 6), numbers(4, 6, seed=1), torch.tensor(units)
    want = F.kl_div((scores[:, on] / temperature).log_softmax(-1), (teacher[:, on] / temperature).log_softmax(-1),
                    reduction="none", log_target=True).sum(-1) * temperature**2
    torch.testing.assert_close(distillation(scores, teacher, on, temperature), want)


def test_distillation_over_no_unit_is_zero_with_a_finite_gradient():
    for dtype in (torch.float32, torch.float64):
        scores = numbers(4, 6).to(dtype).requires_grad_()
        value = distillation(scores, numbers(4, 6, seed=1).to(dtype), torch.zeros(6, dtype=torch.bool), 2.0)
        assert not value.any()
        (grad,) = torch.autograd.grad(value.sum(), scores)
        assert not grad.any()


def test_distillation_from_itself_is_zero():
    scores = numbers(4, 6)
    torch.testing.assert_close(distillation(scores, scores, torch.ones(6, dtype=torch.bool), 2.0),
                               torch.zeros(4, dtype=torch.float64))


# ---- Fisher information


def sequential(bias: bool = True) -> Net:
    return from_module(lambda: nn.Sequential(nn.Linear(8, 7, bias=bias), nn.Tanh(), nn.Linear(7, 6)),
                       torch.ones(2, 8))


NETS = {"mlp": mlp((8,), 6, (7, 5)), "linear": mlp((8,), 6, ()), "module": sequential(),
        "module without bias": sequential(False)}


def asked(scenario: str, n: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lot = pool(scenario)
    x, y = lot.fetch(torch.arange(n))
    rivals = lot.rivals(y)
    allowed = torch.ones(n, 6, dtype=torch.bool) if rivals is None else rivals
    weight = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, y, weight / weight.sum(), allowed


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("labels", ["exact", "empirical", "norm"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_sums_by_layer_are_the_sums_by_example(net, labels, scenario):
    net = NETS[net]
    params, (x, y, weight, allowed) = drawn(net), asked(scenario)
    assert _Layers(params).cover(net, x[:1])
    want = example_sums(net, params, x, y, weight, allowed, labels)
    got = _layer_sums(net, params, x, y, weight, allowed, labels)
    assert got.keys() == want.keys() == params.keys()
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_squares_by_example_are_those_of_one_gradient_after_another(labels):
    net = NETS["mlp"]
    params, (x, y, weight, _) = drawn(net), asked("class")
    want = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in range(len(x)):
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        log_p = net.apply(leaves, x[i:i + 1]).log_softmax(-1)[0]
        for c in range(6) if labels == "exact" else [int(y[i])]:
            share = weight[i] * (log_p[c].exp().detach() if labels == "exact" else 1)
            grads = torch.autograd.grad(log_p[c], list(leaves.values()), retain_graph=True)
            for k, g in zip(leaves, grads, strict=True):
                want[k] += share * g.square()
    got = example_sums(net, params, x, y, weight, torch.ones(len(x), 6, dtype=torch.bool), labels)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-12)


def test_exact_fisher_of_softmax_regression_is_its_formula():
    # For one example F[W_cd] = x_d^2 sum_k p_k (1[k = c] - p_c)^2 = x_d^2 p_c (1 - p_c), and F[b_c] = p_c (1 - p_c).
    net, lot = NETS["linear"], pool()
    params, rows = drawn(net), torch.arange(12)
    x, _ = lot.fetch(rows)
    p = net.apply(params, x).softmax(-1)
    got = fisher(net, params, lot, rows, torch.full((12,), 1 / 12, dtype=torch.float64))
    torch.testing.assert_close(got["head.weight"], (p * (1 - p)).mT @ x.square() / 12)
    torch.testing.assert_close(got["head.bias"], (p * (1 - p)).mean(0))


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_fisher_is_the_same_in_pieces_and_ignores_pads(scenario):
    net, lot = NETS["mlp"], pool(scenario)
    params, weight = drawn(net), torch.full((10,), 0.1, dtype=torch.float64)
    whole = fisher(net, params, lot, torch.arange(10), weight)
    rows = torch.cat([torch.arange(10), torch.full((3,), -1)])
    pieces = fisher(net, params, lot, rows, torch.cat([weight, torch.zeros(3, dtype=torch.float64)]), size=4)
    for k in whole:
        torch.testing.assert_close(pieces[k], whole[k], rtol=1e-12, atol=1e-14)


def test_a_network_of_convolutions_is_squared_example_by_example(monkeypatch):
    net, lot = conv4((1, 6, 6), 6, 4), pool(shape=(1, 6, 6))
    params, rows = drawn(net), torch.arange(4)
    x, y = lot.fetch(rows)
    assert not _Layers(params).cover(net, x[:1])
    weight = torch.full((4,), 0.25, dtype=torch.float64)
    want = example_sums(net, params, x, y, weight, torch.ones(4, 6, dtype=torch.bool), "exact")
    got = fisher(net, params, lot, rows, weight)
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert any(float(v.sum()) > 0 for k, v in got.items() if k.startswith("conv"))


def shared(params: Params, x: Tensor) -> Tensor:
    hidden = F.linear(x, params["w"]).tanh()
    return F.linear(hidden, params["w"])


def scaled(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["w"]) * params["gain"]


def decayed(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["w"]) + torch.stack([params["w"].sum(1)])


@pytest.mark.parametrize(("apply", "shapes"), [
    (shared, {"w": (6, 6)}), (scaled, {"w": (6, 6), "gain": (6,)}), (decayed, {"w": (6, 6)})])
def test_a_parameter_used_in_any_other_way_is_squared_example_by_example(apply, shapes):
    net = Net(lambda g: {k: torch.randn(shape, generator=g) for k, shape in shapes.items()}, apply)
    lot = pool(shape=(6,))
    params, rows, weight = drawn(net), torch.arange(5), torch.full((5,), 0.2, dtype=torch.float64)
    x, y = lot.fetch(rows)
    want = example_sums(net, params, x, y, weight, torch.ones(5, 6, dtype=torch.bool), "exact")
    got = fisher(net, params, lot, rows, weight)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("measure", ["exact", "empirical", "norm"])
def test_a_masked_parameter_is_seen_through_by_layer(measure):
    net, part = NETS["mlp"], xdg(gated=0.5)
    params, (x, y, weight, allowed) = drawn(net), asked("task")
    assert part.init and part.weights
    given = View({}, params, net, pool("task"), task=torch.tensor(1), generator=torch.Generator().manual_seed(4))
    given = given._replace(state=part.init(given))
    gated = net._replace(apply=lambda p, x: net.apply(part.weights(given, p), x))  # type: ignore[misc]
    assert _Layers(params).cover(gated, x[:1])
    want = example_sums(gated, params, x, y, weight, allowed, measure)
    got = _layer_sums(gated, params, x, y, weight, allowed, measure)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-12)
    assert not got["hidden0.weight"][~given.state["0"][1]].any()


def halved(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, torch.where(x.new_ones(6, 6) > 0, params["w"], 1.0) / 2)


def twice_masked(params: Params, x: Tensor) -> Tensor:
    rows = (torch.arange(6) < 3).unsqueeze(1)
    return F.linear(x, torch.where(~rows.mT, torch.where(rows, params["w"], 0.0), 0.0))


def masked_and_not(params: Params, x: Tensor) -> Tensor:
    rows = (torch.arange(6) < 3).unsqueeze(1)
    return F.linear(F.linear(x, params["w"]), torch.where(rows, params["w"], 0.0))


def fallen_apart(params: Params, x: Tensor) -> Tensor:
    return F.linear(x, params["w"]) * params["w"].split(3)[1].sum()


@pytest.mark.parametrize("apply", [halved, twice_masked, masked_and_not, fallen_apart])
def test_a_parameter_masked_in_any_other_way_is_squared_example_by_example(apply):
    net, lot = Net(lambda g: {"w": torch.randn(6, 6, generator=g)}, apply), pool(shape=(6,))
    params = drawn(net)
    x, y = lot.fetch(torch.arange(5))
    want = example_sums(net, params, x, y, mean(5), torch.ones(5, 6, dtype=torch.bool), "exact")
    assert not _Layers(params).cover(net, x[:1])
    torch.testing.assert_close(fisher(net, params, lot, torch.arange(5), mean(5))["w"], want["w"])


def test_fisher_lifts_to_lanes():
    net, lot = NETS["mlp"], pool("task")
    lanes = [drawn(net, seed) for seed in range(3)]
    rows, weight = torch.arange(10), torch.full((10,), 0.1, dtype=torch.float64)
    stacked = {k: torch.stack([p[k] for p in lanes]) for k in lanes[0]}
    many = torch.func.vmap(lambda p: fisher(net, p, lot, rows, weight))(stacked)
    for i, params in enumerate(lanes):
        for k, value in fisher(net, params, lot, rows, weight).items():
            torch.testing.assert_close(many[k][i], value, rtol=1e-12, atol=1e-14)


# ---- products of gradients


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("net", [*NETS, "convolutions"])
def test_products_of_gradients_are_those_of_one_gradient_after_another(net, scenario):
    shape = (1, 6, 6) if net == "convolutions" else (8,)
    net, lot = conv4(shape, 6, 4) if net == "convolutions" else NETS[net], pool(scenario, shape)
    params, rows = drawn(net), torch.tensor([4, 9, 4, 17, 0])
    grads = []
    for row in rows:
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        loss = example_losses(net, lot, row.unsqueeze(0))(leaves).sum()
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(leaves.values()))]))
    flat = torch.stack(grads)
    torch.testing.assert_close(gradient_products(net, params, lot, rows), flat @ flat.mT, rtol=1e-11, atol=1e-12)


def test_products_of_gradients_lift_to_lanes():
    net, lot, rows = NETS["mlp"], pool("task"), torch.arange(7)
    lanes = [drawn(net, seed) for seed in range(3)]
    stacked = {k: torch.stack([p[k] for p in lanes]) for k in lanes[0]}
    many = torch.func.vmap(lambda p: gradient_products(net, p, lot, rows))(stacked)
    for i, params in enumerate(lanes):
        torch.testing.assert_close(many[i], gradient_products(net, params, lot, rows), rtol=1e-12, atol=1e-14)


def mean(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64)


def test_an_answer_is_drawn_where_the_running_sum_passes():
    log_p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64).log().expand(6, 6)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert _drawn(log_p, u).tolist() == [1, 1, 3, 3, 4, 4], "never an answer of probability 0"


@pytest.mark.parametrize("scenario", ["task", "class"])
def test_sampled_fisher_is_the_empirical_one_at_the_drawn_labels(scenario):
    net, lot = NETS["mlp"], pool(scenario)
    params, rows, u = drawn(net), torch.arange(10), torch.rand(10, dtype=torch.float64)
    x, y = lot.fetch(rows)
    allowed = lot.rivals(y)
    log_p = net.apply(params, x).masked_fill(~(torch.tensor(True) if allowed is None else allowed), -1e30).log_softmax(-1)
    labels = torch.tensor([next(c for c in range(6) if float(p[:c + 1].exp().sum()) > float(v))
                           for p, v in zip(log_p, u, strict=True)])
    relabelled = Pool(lot.x, torch.cat([labels, lot.y[10:]]), lot.shape, lot.classes, scenario, dtype=torch.float64)
    if scenario == "task":
        assert torch.equal(labels // 2, y // 2), "an answer of another task has no chance"
    want = fisher(net, params, relabelled, rows, mean(10), "empirical")
    got = fisher(net, params, lot, rows, mean(10), "sampled", size=4, u=u)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-14)


def test_sampled_fisher_averages_to_the_exact_one():
    # 4,000 evenly spread numbers for one and the same example: every answer comes as often as it should, to 1 in 4,000.
    net, lot = NETS["mlp"], pool()
    params, rows, u = drawn(net), torch.zeros(4000, dtype=torch.int64), (torch.arange(4000).double() + 0.5) / 4000
    got = fisher(net, params, lot, rows, mean(4000), "sampled", u=u)
    for k, want in fisher(net, params, lot, rows[:1], mean(1)).items():
        torch.testing.assert_close(got[k], want, rtol=0, atol=float(want.max()) * 6 / 4000 * 6)


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("size", [1, 4, 10])
def test_batched_fisher_is_the_mean_of_squares_of_mean_gradients(size, scenario):
    net, lot = NETS["mlp"], pool(scenario)
    params, rows = drawn(net), torch.arange(10)
    pieces = [torch.func.grad(batch_loss(net, lot, part, mean(len(part))))(params) for part in rows.split(size)]
    padded = torch.cat([rows, torch.full((2 * size + 1,), -1)])
    weight = torch.cat([mean(10), torch.zeros(2 * size + 1, dtype=torch.float64)])
    for given in ((rows, mean(10)), (padded, weight)):
        got = fisher(net, params, lot, *given, "batched", size)
        for k in got:
            want = torch.stack([g[k].square() for g in pieces]).mean(0)
            torch.testing.assert_close(got[k], want, rtol=1e-12, atol=1e-16)


def test_a_mini_batch_of_one_is_the_empirical_fisher():
    net, params = NETS["mlp"], drawn(NETS["mlp"])
    one, many = (fisher(net, params, pool(), torch.arange(10), mean(10), labels, 1) for labels in ("batched", "empirical"))
    for k in one:
        torch.testing.assert_close(one[k], many[k], rtol=1e-12, atol=1e-16)


def test_batched_fisher_is_avalanches():
    pytest.importorskip("avalanche")
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins.ewc import EWCPlugin

    class Examples(torch.utils.data.Dataset):  # type: ignore[type-arg]
        targets = pool().y[:10].tolist()

        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return pool().x[i], self.targets[i]

    module = nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 6)).double()
    theirs = EWCPlugin(1.0).compute_importances(
        module, nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), 0.1),
        as_classification_dataset(Examples()), torch.device("cpu"), 4)
    params = {k: p.detach() for k, p in module.named_parameters()}
    ours = fisher(sequential(), params, pool(), torch.arange(10), mean(10), "batched", 4)
    for k, value in ours.items():  # theirs are kept in single precision
        torch.testing.assert_close(value, theirs[k].data.double(), rtol=1e-5, atol=1e-10)


def test_an_unknown_kind_of_label_is_refused():
    net = NETS["mlp"]
    with pytest.raises(ValueError, match="labels .*'exact', 'sampled', 'empirical', 'batched'"):
        fisher(net, drawn(net), pool(), torch.arange(2), mean(2), "true")
    assert len(LABELS) == 4


# ---- sensitivity of the answers


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("net", NETS)
def test_sensitivity_is_that_of_one_gradient_after_another(net, scenario):
    net, lot = NETS[net], pool(scenario)
    params = drawn(net)
    want = {k: torch.zeros_like(p) for k, p in params.items()}
    for row in range(10):
        leaves = {k: p.clone().requires_grad_() for k, p in params.items()}
        x, y = lot.fetch(torch.tensor([row]))
        scores = net.apply(leaves, x)[0]
        own = scores if scenario == "class" else scores[int(y) // 2 * 2:int(y) // 2 * 2 + 2]
        for k, g in zip(leaves, torch.autograd.grad(own.square().sum(), list(leaves.values())), strict=True):
            want[k] += g.abs() / 10
    got = sensitivity(net, params, lot, torch.arange(10), mean(10), size=4)
    for k in want:
        torch.testing.assert_close(got[k], want[k], rtol=1e-12, atol=1e-14)


def test_sensitivity_of_a_linear_network_is_its_formula():
    # d ||F||^2 / d W_cd = 2 F_c x_d and d / d b_c = 2 F_c: their absolute values, averaged over examples.
    net, lot = NETS["linear"], pool()
    params = drawn(net)
    x, _ = lot.fetch(torch.arange(12))
    scores = 2 * net.apply(params, x).abs()
    got = sensitivity(net, params, lot, torch.arange(12), mean(12))
    torch.testing.assert_close(got["head.weight"], scores.mT @ x.abs() / 12)
    torch.testing.assert_close(got["head.bias"], scores.mean(0))


# ---- elastic weight consolidation


def view(net: Net, params: Params, state: dict[str, Any], rows: Tensor | None = None) -> View:
    rows = torch.arange(10) if rows is None else rows
    weight = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    return View(state, params, net, pool(), u=torch.rand(len(rows), dtype=torch.float64), task=torch.tensor(0),
                batch=Slice(rows, weight, *[None] * 3))  # type: ignore[arg-type]


def pull(part: Part, given: View) -> Params:
    """The gradient of the penalties of a part with respect to the parameters of `given`."""
    assert part.loss
    (penalty,) = part.loss(given).penalties
    return penalty_gradient(penalty, given.params)


def test_the_gradient_of_the_penalty_worked_by_hand():
    # The gradient of 4/2 * (2 (x - 0)^2 + 0.5 (y - 4)^2) at x = 1, y = 2: 4 * 2 * 1 and 4 * 0.5 * -2.
    part = ewc(strength=4.0)
    here, anchor = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    state = {"importance": {"x": torch.tensor([2.0, 0.5])}, "anchor": {"x": anchor}}
    assert pull(part, view(NETS["linear"], {"x": here}, state))["x"].tolist() == [8.0, -4.0]
    assert here.tolist() == [1, 2] and anchor.tolist() == [0, 4], "what was given stays as it was"


def test_the_penalty_stands_in_for_a_quadratic_task():
    # Tasks a/2 (x - m)^2 and b/2 (x - n)^2 are minimised together at (a m + b n) / (a + b). With the first task's
    # curvature as importance and its minimum as anchor, strength 1, the second task plus the penalty is that sum.
    a, b, m, n = (numbers(5, seed=s) for s in range(4))
    a, b = a.square() + 0.1, b.square() + 0.1
    part = ewc(strength=1.0)
    solution = (a * m + b * n) / (a + b)
    state = {"importance": {"x": a}, "anchor": {"x": m}}
    for away in (torch.zeros(5, dtype=torch.float64), numbers(5, seed=9)):
        x = solution + away
        gradient = b * (x - n) + pull(part, view(NETS["linear"], {"x": x}, state))["x"]
        torch.testing.assert_close(gradient, (a + b) * away, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_the_merged_quadratic_is_that_of_the_penalties_of_all_tasks():
    net, part = NETS["mlp"], ewc(strength=3.0)
    assert part.init and part.task
    state = part.init(view(net, drawn(net), {}))
    penalties = []
    for task in range(3):
        params, rows = drawn(net, seed=10 + task), torch.arange(task * 10, task * 10 + 10)
        penalties.append((params, fisher(net, params, pool(), rows, torch.full((10,), 0.1, dtype=torch.float64))))
        state = part.task(view(net, params, state, rows))
    here = drawn(net, seed=50)
    got = pull(part, view(net, here, state))
    for k in here:
        want = sum(3.0 * importance[k] * (here[k] - anchor[k]) for anchor, importance in penalties)
        torch.testing.assert_close(got[k], want, rtol=1e-12, atol=1e-12)


def test_online_mode_decays_what_was_and_moves_the_anchor():
    net, part = NETS["mlp"], ewc(mode="online", decay=0.5)
    assert part.init and part.task
    state = part.init(view(net, drawn(net), {}))
    total: Params = {}
    for task in range(3):
        params, rows = drawn(net, seed=10 + task), torch.arange(task * 10, task * 10 + 10)
        new = fisher(net, params, pool(), rows, torch.full((10,), 0.1, dtype=torch.float64))
        total = {k: 0.5 * total.get(k, torch.zeros_like(v)) + v for k, v in new.items()}
        state = part.task(view(net, params, state, rows))
    for k, value in total.items():
        torch.testing.assert_close(state["importance"][k], value, rtol=1e-12, atol=1e-14)
        assert torch.equal(state["anchor"][k], params[k])


def test_samples_choose_real_rows_only_and_weigh_them_equally():
    net, part = NETS["mlp"], ewc(samples=3)
    assert part.init and part.task
    params = drawn(net)
    rows = torch.cat([torch.arange(4), torch.full((6,), -1)])
    given = view(net, params, part.init(view(net, params, {})), rows)
    u = torch.tensor([0.2, 0.9, 0.8, 0.1] + [0.95] * 6, dtype=torch.float64)  # the largest of the real ones: 1, 2, 0
    state = part.task(given._replace(u=u))
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    for k, value in fisher(net, params, pool(), torch.tensor([1, 2, 0]), third).items():
        torch.testing.assert_close(state["importance"][k], value, rtol=1e-12, atol=1e-14)


def test_losses_are_summed_by_python_too() -> None:
    one, other = Loss({"batch": torch.ones(2)}), Loss({"batch": torch.ones(2), "er": torch.ones(3)})
    total: Loss = sum([one, other])  # type: ignore[assignment, list-item]
    assert total.entropies["batch"].tolist() == [2, 2] and total.entropies["er"].tolist() == [1, 1, 1] and not total.free
