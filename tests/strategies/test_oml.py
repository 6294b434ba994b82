"""OML and ANML: the fast inner loops have the gradients of plain ones, and what is drawn is what the papers draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies import oml as family

from lifelong.data.source import Source
from lifelong.networks.conv import anml_net, oml_net
from lifelong.randomness import generator
from lifelong.starts.pretrain import make_source
from lifelong.starts.recipe import learn

CLASSES, SHAPE = 6, (1, 28, 28)


def source(domains: int = 1, each: int = 8) -> Source:
    """Random images: `each` of every class in every domain."""
    n = domains * CLASSES * each
    x = torch.rand(n, *SHAPE, generator=generator("pixels"))
    y = torch.arange(n) // each % CLASSES
    return Source("noise", x, y, torch.arange(n).view(domains, CLASSES, each), SHAPE)


def recipe(make: Any, **options: Any) -> Any:
    return make(**options).recipe


def drawn(made: Any, seed: int = 0, **options: Any) -> dict[str, Any]:
    return made.draw(source(**options).sampler(generator(seed, "episode"), dtype=torch.float64))


def parameters(net: Any) -> dict[str, torch.Tensor]:
    params = {k: p.double() for k, p in net.init(generator(1, "init")).items()}
    for k, p in params.items():  # nothing at its initial 0 or 1, where a mistake could hide
        params[k] = (p + 0.1 * torch.randn(p.shape, generator=generator(k), dtype=torch.float64)).requires_grad_()
    return params


def descended(params: dict[str, torch.Tensor], names: list[str], loss: torch.Tensor, lr: float,
              order: str) -> dict[str, torch.Tensor]:
    """One plain step of gradient descent on `names`."""
    grads = torch.autograd.grad(loss, [params[k] for k in names], create_graph=True)
    return params | {k: params[k] - lr * (g if order == "second" else g.detach())
                     for k, g in zip(names, grads, strict=True)}


def plain_oml(params: dict[str, torch.Tensor], episode: dict[str, Any], lr: float, order: str) -> torch.Tensor:
    """The whole network in every inner step, the output layer as a copy."""
    strides, fast = (2, 1, 1, 1, 1, 1), params

    def scores(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        for i, stride in enumerate(strides):
            x = F.conv2d(x, params[f"conv{i}.weight"], params[f"conv{i}.bias"], stride=stride).relu()
        return x.flatten(1) @ params["head.weight"].T + params["head.bias"]

    for j in range(episode["trajectory"]):
        loss = F.cross_entropy(scores(fast, episode["x"][j:j + 1]), episode["y"][j:j + 1])
        fast = descended(fast, ["head.weight", "head.bias"], loss, lr, order)
    first = episode["first_query"]
    return F.cross_entropy(scores(fast, episode["x"][first:]), episode["y"][first:])


def plain_anml(params: dict[str, torch.Tensor], episode: dict[str, Any], lr: float, order: str) -> torch.Tensor:
    """One image at a time through both networks, with batch normalisation of a batch of one, at every step."""
    def stack(params: dict[str, torch.Tensor], prefix: str, x: torch.Tensor) -> torch.Tensor:
        for i in range(3):
            x = F.conv2d(x, params[f"{prefix}conv{i}.weight"])
            x = F.batch_norm(x, None, None, params[f"{prefix}norm{i}.weight"], params[f"{prefix}norm{i}.bias"], True)
            x = F.max_pool2d(x.relu(), 2) if i < 2 else x.relu()
        return x.flatten(1)

    def scores(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        mask = (stack(params, "gate.", x) @ params["gate.out.weight"].T + params["gate.out.bias"]).sigmoid()
        return (stack(params, "", x) * mask) @ params["head.weight"].T + params["head.bias"]

    fast, inner = params, [k for k in params if not k.startswith("gate")]
    for j in range(episode["trajectory"]):
        loss = F.cross_entropy(scores(fast, episode["x"][j:j + 1]), episode["y"][j:j + 1])
        fast = descended(fast, inner, loss, lr, order)
    asked = range(episode["first_query"], len(episode["y"]))
    return torch.stack([F.cross_entropy(scores(fast, episode["x"][i:i + 1]), episode["y"][i:i + 1])
                        for i in asked]).mean()


CASES = [
    (family.oml, oml_net, {"width": 3}, plain_oml, {"classes": 3, "shots": 2, "others": 2, "remember": 5}, 0.3),
    (family.oml, oml_net, {"width": 3}, plain_oml, {"classes": 1, "shots": 6, "others": 0, "remember": 7}, 0.3),
    (family.anml, anml_net, {"width": 3, "gate": 2}, plain_anml, {"shots": 5, "remember": 4}, 0.1),
    (family.anml, anml_net, {"width": 2, "gate": 3}, plain_anml, {"classes": 2, "shots": 2, "others": 2,
                                                                  "remember": 3}, 0.2),
]


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize(("make", "model", "widths", "plain", "options", "lr"), CASES)
def test_the_fast_meta_gradient_is_the_plain_one(make: Any, model: Any, widths: Any, plain: Any, options: Any,
                                                 lr: float, order: str) -> None:
    net, made = model(SHAPE, CLASSES, **widths), recipe(make, inner_lr=lr, order=order, **options)
    params, episode = parameters(net), drawn(made)
    loss, logs = made.loss(net, params, episode)
    expected = plain(params, episode, lr, order)
    grads, wanted = (torch.autograd.grad(v, list(params.values()), materialize_grads=True) for v in (loss, expected))
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert 0 <= float(logs["accuracy"]) <= 1
    for name, g, w in zip(params, grads, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11, msg=name)
    assert sum(float(w.abs().max()) > 1e-6 for w in wanted) == len(wanted)


@pytest.mark.parametrize(("make", "model", "widths", "plain", "options", "lr"), CASES[::2])
def test_the_orders_differ(make: Any, model: Any, widths: Any, plain: Any, options: Any, lr: float) -> None:
    net = model(SHAPE, CLASSES, **widths)
    params, found = parameters(net), {}
    for order in ("first", "second"):
        made = recipe(make, inner_lr=lr, order=order, **options)
        loss, _ = made.loss(net, params, drawn(made))
        found[order] = torch.autograd.grad(loss, params["conv1.weight"])[0]
    assert float((found["first"] - found["second"]).abs().max()) > 1e-6


def test_a_trajectory_is_class_after_class_and_asked_are_other_images_and_any() -> None:
    made = recipe(family.oml, classes=2, shots=3, others=2, remember=4)
    episode = drawn(made)
    y = episode["y"].tolist()
    assert (episode["trajectory"], episode["first_query"], len(y)) == (6, 6, 14)
    assert y[:3] == [y[0]] * 3 and y[3:6] == [y[3]] * 3 and y[0] != y[3]
    assert y[6:8] == [y[0]] * 2 and y[8:10] == [y[3]] * 2
    images = episode["x"].flatten(1)
    assert len(images[:10].unique(dim=0)) == 10 and len(images[10:].unique(dim=0)) == 4


def test_anmls_own_images_are_asked_again() -> None:
    episode = drawn(recipe(family.anml, shots=8, remember=3))
    assert (episode["trajectory"], episode["first_query"], len(episode["y"])) == (8, 0, 11)
    assert len(episode["x"][:8].flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("make", [family.oml, family.anml])
def test_the_rows_of_a_trajectorys_classes_alone_are_drawn_anew(make: Any) -> None:
    made = recipe(make, classes=2, shots=3, remember=2)
    net = oml_net(SHAPE, 200, width=4)
    params = net.init(generator(1, "init"))
    episode = drawn(made)
    after = made.reset(net, params, episode, generator(5))
    again = made.reset(net, params, episode, generator(5))
    moved = (after["head.weight"] != params["head.weight"]).all(1).nonzero().flatten().tolist()
    assert moved == sorted(set(episode["y"][:6].tolist()))
    assert torch.equal(after["head.weight"], again["head.weight"])
    assert all(torch.equal(after[k], p) for k, p in params.items() if k != "head.weight")
    assert float(after["head.weight"][moved].std()) == pytest.approx((2 / 36) ** 0.5, rel=0.3)


@pytest.mark.parametrize("make", [family.oml, family.anml])
def test_domains_are_met_one_after_another_and_no_row_is_drawn_anew(make: Any) -> None:
    made = recipe(make, classes=3, shots=4, others=2, remember=5)
    three = source(domains=4)
    sampler = three.sampler(generator(3, "episode"))
    episode = made.draw(sampler)
    pixels = {tuple(row.tolist()): i // (CLASSES * 8) for i, row in enumerate(three.x.flatten(1))}
    where = [pixels[tuple(row.tolist())] for row in episode["x"].flatten(1)]
    assert where[:12] == [where[0]] * 4 + [where[4]] * 4 + [where[8]] * 4
    assert len({where[0], where[4], where[8]}) == 3
    assert where[12:18] == [where[0]] * 2 + [where[4]] * 2 + [where[8]] * 2
    params = oml_net(SHAPE, CLASSES, width=2).init(generator(0))
    assert made.reset(oml_net(SHAPE, CLASSES, width=2), params, episode, generator(1)) is params


@pytest.mark.parametrize(("options", "domains", "sentence"), [
    ({"classes": 7, "shots": 1}, 1, "noise has 6 classes, fewer than the 7 requested"),
    ({"classes": 2, "shots": 7}, 1, "noise has 8 examples per class, fewer than the 12 requested"),
    ({"classes": 5, "shots": 1}, 4, "noise has 4 domains, fewer than the 5 requested"),
    ({"classes": 1, "shots": 44}, 4, "noise has 48 examples per domain, fewer than the 49 requested"),
])
def test_what_a_source_cannot_give_is_refused(options: Any, domains: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        drawn(recipe(family.oml, **options), domains=domains)


@pytest.mark.parametrize(("options", "sentence"), [
    ({"order": "third"}, "order must be one of 'first', 'second', got 'third'"),
    ({"classes": 0}, "classes"), ({"remember": -1}, "remember"), ({"inner_lr": 0.0}, "inner_lr")])
@pytest.mark.parametrize("make", [family.oml, family.anml])
def test_what_cannot_be_is_refused(make: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(**options)


def test_anml_needs_a_gate() -> None:
    made = recipe(family.anml, shots=2, remember=2)
    net = oml_net(SHAPE, CLASSES, width=2)
    with pytest.raises(ValueError, match="needs a network with a gate"):
        made.loss(net, parameters(net), drawn(made))


@pytest.mark.parametrize("make", [family.oml, family.anml])
def test_learning_lowers_the_loss(make: Any) -> None:
    model = oml_net if make is family.oml else anml_net
    made = recipe(make, steps=150, classes=1, shots=5, others=0, remember=15, lr=5e-3)
    glyphs = make_source("glyphs(classes=40)")  # of ten, a tenth is drawn anew at every step
    net = model(glyphs.shape, 40, width=8) if make is family.oml else model(glyphs.shape, 40, width=8, gate=4)
    _, logs = learn(made, net, glyphs)
    losses = logs["loss"]
    assert float(losses[-20:].mean()) < 0.8 * float(losses[:10].mean())
