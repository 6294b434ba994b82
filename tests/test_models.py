"""Networks: batch normalisation with the statistics of a batch and with those that were kept, and the convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lifelong.streams import glyphs
from torch import Tensor, nn

import lifelong
from lifelong.experiments.prepare import prepare
from lifelong.learning.optim import adam
from lifelong.learning.schedule import batches, plan
from lifelong.networks.conv import anml_net, conv4, oml_net
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net, Params, shapes_of
from lifelong.networks.norms import normalised
from lifelong.networks.resnet import resnet, resnet18
from lifelong.spec.run import Options
from lifelong.starts.install import installed
from lifelong.starts.recipe import Recipe, episode_features, episode_scores, learn, set_statistics
from lifelong.starts.weights import Weights

SHAPE = (1, 28, 28)


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *SHAPE, generator=g(1), dtype=dtype)


def module(net: Net, params: Params, norm: str, down: str, width: int) -> nn.Sequential:
    """The same network of torch's own layers."""
    layers: list[nn.Module] = []
    for i in range(4):
        conv = nn.Conv2d(1 if i == 0 else width, width, 3, 2 if down == "stride" else 1, 1)
        conv.weight.data, conv.bias.data = params[f"conv{i}.weight"], params[f"conv{i}.bias"]
        layers.append(conv)
        if norm != "none":
            own: Any = {"group": lambda: nn.GroupNorm(1, width), "batch": lambda: nn.BatchNorm2d(width),
                        "instance": lambda: nn.InstanceNorm2d(width, affine=True)}[norm]()
            own.weight.data, own.bias.data = params[f"norm{i}.weight"], params[f"norm{i}.bias"]
            layers.append(own)
        layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if down == "pool" else [])]
    return nn.Sequential(*layers, nn.Flatten()).to(next(iter(params.values())).dtype)



@pytest.mark.parametrize("down", ["stride", "pool"])
@pytest.mark.parametrize("norm", ["group", "batch", "instance", "none"])
def test_conv4_is_the_network_of_torchs_layers(norm: str, down: str) -> None:
    net = conv4(SHAPE, 5, 4, norm=norm, down=down)
    params = {k: p.double() for k, p in net.init(g()).items()}
    for k in params:  # scales of 1 and shifts of 0 would hide a mistake
        if k.startswith("norm"):
            params[k] = params[k] + 0.1 * torch.rand(params[k].shape, generator=g(2), dtype=torch.float64)
    x, other = images(dtype=torch.float64), module(net, params, norm, down, 4)
    assert net.fresh is None or norm == "batch"
    torch.testing.assert_close(net.fresh(params, x)[0] if net.fresh else net.features(params, x), other(x))
    if norm == "batch":
        for i, layer in enumerate(m for m in other if isinstance(m, nn.BatchNorm2d)):
            layer.running_mean, layer.running_var = params[f"norm{i}.mean"], params[f"norm{i}.var"]
        torch.testing.assert_close(net.features(params, x), other.eval()(x))
    torch.testing.assert_close(net.apply(params, x), F.linear(net.features(params, x), params["head.weight"],
                                                              params["head.bias"]))


def test_the_statistics_of_a_batch_by_hand() -> None:
    x = torch.tensor([1.0, 3.0, 3.0, 5.0]).view(2, 1, 1, 2)  # mean 3, variance (4 + 0 + 0 + 4) / 4 = 2
    own: Params = {}
    params = {"n.weight": torch.tensor([2.0]), "n.bias": torch.tensor([1.0]), "n.mean": torch.tensor([3.0]),
              "n.var": torch.tensor([2.0])}
    out = normalised(params, "n", x, "batch", own)
    torch.testing.assert_close(own, {"n.mean": torch.tensor([3.0]), "n.var": torch.tensor([2.0]),
                                     "n.count": torch.tensor(4.0, dtype=torch.float64)})
    torch.testing.assert_close(out.flatten(), 1 + 2 * torch.tensor([-2.0, 0, 0, 2]) / 2**0.5)
    torch.testing.assert_close(normalised(params, "n", x, "batch"), out)


def test_a_batchs_own_statistics_give_what_the_same_statistics_kept_give() -> None:
    net = conv4(SHAPE, 5, 4, norm="batch")
    params = net.init(g())
    assert set(net.still) == {k for k in params if k.endswith((".mean", ".var"))}
    features, own = net.fresh(params, images())
    assert own.keys() == set(net.still) and not any(v.requires_grad for v in own.values())
    torch.testing.assert_close(net.features(params | own, images()), features, rtol=1e-4, atol=1e-5)
    alone = torch.cat([net.features(params | own, x) for x in images().split(1)])
    torch.testing.assert_close(alone, features, rtol=1e-4, atol=1e-5)


def test_batch_normalisation_under_bfloat16_keeps_its_statistics_in_full() -> None:
    net = conv4(SHAPE, 5, 4, norm="batch")
    params = net.init(g())
    with torch.autocast("cpu", torch.bfloat16):
        features, own = net.fresh(params, images())
        assert net.features(params, images()).isfinite().all()
    assert all(v.dtype == torch.float32 for v in own.values())
    torch.testing.assert_close(features.float(), net.fresh(params, images())[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("shape", "options", "said"), [
    ((1, 8, 8), {"down": "pool"}, "cannot be halved four times"),
    ((1, 8, 8), {"norm": "instance"}, "shrink to one pixel"),
    (SHAPE, {"norm": "layer"}, "norm must be one of"),
    (SHAPE, {"down": "average"}, "down must be one of"),
    ((3, 8), {}, "needs images"),
])
def test_what_conv4_cannot_be_is_refused(shape: tuple[int, ...], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conv4(shape, 5, **options)


@pytest.mark.parametrize("net", [
    mlp(SHAPE, 5, (7,)), conv4(SHAPE, 5, 4, norm="batch"), oml_net(SHAPE, 5, 4), anml_net(SHAPE, 5, 4, 3),
    resnet(SHAPE, 5, (4, 6)), resnet18(SHAPE, 5, 2)])
def test_the_shapes_of_parameters_are_known_without_a_random_number(net: Net) -> None:
    wanted = {k: tuple(p.shape) for k, p in net.init(g()).items()}
    before = torch.get_rng_state()
    found: list[str] = []

    def init(g: torch.Generator) -> Params:
        params = net.init(g)
        found.extend(p.device.type for p in params.values())
        return params

    assert shapes_of(net._replace(init=init)) == wanted and set(found) == {"meta"}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_that_reads_its_parameters_as_it_draws_them_tells_their_shapes_too() -> None:
    def init(g: torch.Generator) -> Params:
        w = torch.randn(3, 4, generator=g)
        return {"w": w / w.norm().item()}

    assert shapes_of(Net(init, lambda params, x: x @ params["w"])) == {"w": (3, 4)}


# ---- learning


def recipe(steps: int = 3) -> Recipe:
    def draw(sampler: Any) -> dict[str, Any]:
        x, y = sampler.fetch(sampler.any_rows(12))
        return {"x": x, "y": y}

    def loss(net: Net, params: Params, episode: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return F.cross_entropy(episode_scores(net, params, episode["x"]), episode["y"]), {}

    return Recipe("conv4(width=4, norm='batch')", steps, draw, loss, lambda step: adam(0.01, weight_decay=0.1),
                  finish=lambda net, params, sampler: set_statistics(net, params, sampler, 4, 20))


def test_learning_never_moves_statistics_and_sets_them_at_the_end() -> None:
    source, net = glyphs.source(classes=4), conv4(SHAPE, 4, 4, norm="batch")
    seen: list[Params] = []
    kept: list[dict[str, Any]] = []
    params, _ = learn(recipe(60), net, source, save=kept.append, save_every=0)
    assert {k for k in kept[0]["params"] if k.endswith(".mean")} == {k for k in net.still if k.endswith(".mean")}
    for checkpoint in kept:
        assert not any(k in name for name in checkpoint["optimizer"] for k in net.still)
        for k in net.still:  # weight decay too would move them
            assert torch.equal(checkpoint["params"][k], net.init(g())[k])
    sampler = source.sampler(g(7))
    for _ in range(50):
        seen.append(net.fresh(params, sampler.fetch(sampler.any_rows(20))[0])[1])
    for k in net.still:
        usual = torch.stack([own[k] for own in seen]).mean(0)
        assert float((params[k] - usual).abs().max()) < 0.25 * float(usual.abs().max())
        assert not torch.equal(params[k], net.init(g())[k])


def test_settled_statistics_are_averages_over_random_batches() -> None:
    source, net = glyphs.source(classes=3), conv4(SHAPE, 3, 4, norm="batch")
    params = net.init(g())
    by_hand = [net.fresh(params, s.fetch(s.any_rows(5))[0])[1] for s in [source.sampler(g(3))] for _ in range(2)]
    found = set_statistics(net, params, source.sampler(g(3)), 2, 5)
    for k in net.still:
        torch.testing.assert_close(found[k], (by_hand[0][k] + by_hand[1][k]) / 2)
    plain = conv4(SHAPE, 3, 4)
    held = plain.init(g())
    assert set_statistics(plain, held, source.sampler(g(3))) is held
    torch.testing.assert_close(episode_features(plain, held, images()), plain.features(held, images()))


def test_random_rows_are_different_ones_even_where_most_are_asked_for() -> None:
    sampler = glyphs.source(classes=3).sampler(g())
    for count in (5, 55, 60):  # waiting for 55 different ones of 60 by luck takes for ever
        assert len(set(sampler.any_rows(count).tolist())) == count
    assert len(sampler.any_rows(70)) == 70


@pytest.mark.parametrize("adapt", ["head", "ungated", "all"])
def test_an_installed_network_never_moves_statistics(adapt: str) -> None:
    net = conv4(SHAPE, 3, 4, norm="batch")
    params = net.init(g()) | {"norm0.mean": torch.full((4,), 0.3)}
    about = {"start": "any", "model": "conv4(width=4, norm='batch')", "shape": list(SHAPE), "units": 3, "domains": 1}
    moved = installed(Weights(params, about), SHAPE, 5, "class", adapt=adapt)
    assert not set(moved.init(g())) & set(net.still)
    expected = net.features(params, images())
    assert moved.features is not None
    torch.testing.assert_close(moved.features(moved.init(g()), images()), expected)
    assert moved.fresh is None and moved.still == ()


def test_a_plain_run_moves_the_statistics_of_batch_normalisation() -> None:
    experiment = prepare("split-glyphs(tasks=2)", ["er + lwf"], Options(seeds=2, model="conv4(width=4, norm='batch')"))
    stack = experiment.learners.lanes(experiment.specs)
    state = stack.init()
    before = {k: p.clone() for k, p in state["params"].items()}
    _, batch = next(iter(batches(stack, plan(stack.stream, stack.seeds, 0, "task", experiment.learners.budget), 0, 0)))
    state, _ = stack.observe(state, batch)
    assert not any(torch.equal(state["params"][k], before[k]) for k in before if k.endswith((".mean", ".var")))


def test_a_network_that_does_not_say_how_its_statistics_move_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = conv4(SHAPE, 10, 4, norm="batch")._replace(train=None)
    monkeypatch.setattr("lifelong.networks.conv.classifier", lambda *args: made)
    with pytest.raises(ValueError, match=r"norm0\.mean is moved by no gradient"):
        lifelong.run("split-glyphs(tasks=2)", "er", model="conv4(norm='batch')", seeds=1, steps=1)
