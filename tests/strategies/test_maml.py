"""MAML and its relatives: their outer gradients against plain implementations, and small cases worked by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies import maml as family
from lifelong.streams import digits, glyphs
from torch import Tensor, nn

from lifelong.data.source import Source
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.networks.net import Net, Params
from lifelong.starts.pretrain import Pretraining, parse
from lifelong.starts.recipe import Recipe, learn

SHAPE = (1, 8, 8)


def g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recipe(name: str, **hyper: Any) -> Recipe:
    made: Recipe = getattr(family, name)(**hyper).recipe
    return made


def tiny(classes: int = 6, per: int = 5) -> Source:
    """Random images [1, 8, 8]; class c is about its own pattern."""
    x = torch.rand(classes, 1, *SHAPE, generator=g(5)) + 0.3 * torch.rand(classes, per, *SHAPE, generator=g(6))
    rows = torch.arange(classes * per).view(1, classes, per)
    return Source("tiny-v1", x.flatten(0, 1), torch.arange(classes).repeat_interleave(per), rows, SHAPE)


def episode(own: Recipe, source: Source | None = None, seed: int = 3) -> dict[str, Any]:
    return own.draw((source or tiny()).sampler(g(seed), dtype=torch.float64))


def params_of(net: Net) -> Params:
    return {k: p.double() for k, p in net.init(g(1)).items()}


def outer(own: Recipe, net: Net, params: Params, given: dict[str, Any]) -> tuple[Tensor, Params]:
    """The objective and its gradient."""
    leaves = {k: p.clone().requires_grad_() for k, p in params.items() if k not in net.still}
    loss, _ = own.loss(net, params | leaves, given)
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return loss.detach(), dict(zip(leaves, found, strict=True))


class Plain(nn.Module):
    """The convolutional network of torch's own layers, which normalises by its batch."""

    def __init__(self, width: int, way: int) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"conv{i}", nn.Conv2d(1 if i == 0 else width, width, 3, 2, 1))
            setattr(self, f"norm{i}", nn.BatchNorm2d(width, track_running_stats=False))
        self.head = nn.Linear(width, way)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(4):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x)).relu()
        scores: Tensor = self.head(x.flatten(1))
        return scores


def plainly(params: Params, given: dict[str, Any], inner: int, rate: float | Params, first: bool = False,
            head_only: bool = False) -> tuple[Tensor, Params]:
    """MAML task after task: functional_call, and autograd through autograd."""
    module = Plain(3, 3).double()
    leaves = {k: p.clone().requires_grad_() for k, p in params.items() if not k.endswith((".mean", ".var"))}
    total = torch.zeros((), dtype=torch.float64)
    for x, query in zip(given["x"], given["query"], strict=True):
        fast = dict(leaves)
        for _ in range(inner):
            loss = F.cross_entropy(torch.func.functional_call(module, fast, (x,)), given["y"])
            moving = [k for k in fast if not head_only or k.startswith("head")]
            grads = torch.autograd.grad(loss, [fast[k] for k in moving], create_graph=not first)
            for k, d in zip(moving, grads, strict=True):
                fast[k] = fast[k] - (rate if isinstance(rate, float) else rate[k]) * d
        total = total + F.cross_entropy(torch.func.functional_call(module, fast, (query,)), given["query_y"])
    total = total / len(given["x"])
    return total.detach(), dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))


@pytest.mark.parametrize(("name", "options"), [
    ("maml", {}), ("fomaml", {"first": True}), ("anil", {"head_only": True})])
@pytest.mark.parametrize("inner", [1, 3])
def test_the_outer_gradient_is_that_of_a_plain_implementation(name: str, options: dict[str, bool], inner: int) -> None:
    own = recipe(name, way=3, shots=2, queries=1, tasks=3, inner=inner, rate=0.3)
    net = conv4(SHAPE, 3, 3, norm="batch")
    params, given = params_of(net), episode(own)
    loss, grads = outer(own, net, params, given)
    expected, wanted = plainly(params, given, inner, 0.3, **options)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    assert grads.keys() == wanted.keys()
    torch.testing.assert_close(grads, wanted, rtol=0, atol=1e-9)
    assert max(float(d.abs().max()) for d in grads.values()) > 1e-3


@pytest.mark.parametrize("inner", [1, 3])
def test_the_outer_gradient_of_maml_is_torchopts(inner: int) -> None:
    torchopt = pytest.importorskip("torchopt")
    own = recipe("maml", way=3, shots=2, queries=1, tasks=3, inner=inner, rate=0.3)
    net = conv4(SHAPE, 3, 3, norm="batch")
    params, given = params_of(net), episode(own)
    loss, grads = outer(own, net, params, given)
    module = Plain(3, 3).double()
    module.load_state_dict({k: p for k, p in params.items() if k not in net.still})
    optimizer = torchopt.MetaSGD(module, lr=0.3)
    begin = torchopt.extract_state_dict(module, by="reference"), torchopt.extract_state_dict(optimizer, by="reference")
    leaves = dict(module.named_parameters())
    objective = torch.zeros((), dtype=torch.float64)
    for x, query in zip(given["x"], given["query"], strict=True):
        for _ in range(inner):
            optimizer.step(F.cross_entropy(module(x), given["y"]))
        objective = objective + F.cross_entropy(module(query), given["query_y"]) / len(given["x"])
        torchopt.recover_state_dict(module, begin[0])
        torchopt.recover_state_dict(optimizer, begin[1])
    wanted = dict(zip(leaves, torch.autograd.grad(objective, list(leaves.values())), strict=True))
    torch.testing.assert_close(loss, objective.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(grads, wanted, rtol=0, atol=1e-9)


def test_second_derivatives_matter() -> None:
    net = conv4(SHAPE, 3, 3, norm="batch")
    both = [outer(own, net, params_of(net), episode(own)) for own in
            (recipe(name, way=3, tasks=2) for name in ("maml", "fomaml"))]
    torch.testing.assert_close(both[0][0], both[1][0])  # the same objective
    assert float((both[0][1]["head.weight"] - both[1][1]["head.weight"]).abs().max()) > 1e-3


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def descent(w: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the mean cross-entropy of a linear classifier, by its formula."""
    d = (softmax(x @ w.T + b) - np.eye(len(b))[y]) / len(y)
    return d.T @ x, d.sum(0)


def linear(count: int = 2) -> tuple[Net, Params, np.ndarray, np.ndarray]:
    net = mlp((2,), count, ())
    params = {"head.weight": torch.tensor([[0.5, -1.0], [0.25, 2.0]], dtype=torch.float64)[:count],
              "head.bias": torch.tensor([0.1, -0.2], dtype=torch.float64)[:count]}
    return net, params, params["head.weight"].numpy(), params["head.bias"].numpy()


TASK = {"x": torch.tensor([[[1.0, 2.0], [3.0, -1.0]]], dtype=torch.float64), "y": torch.tensor([0, 1]),
        "query": torch.tensor([[[2.0, 0.5], [-1.0, 1.0]]], dtype=torch.float64), "query_y": torch.tensor([0, 1])}


def test_first_order_maml_by_the_formula_of_a_linear_classifier() -> None:
    own = recipe("fomaml", way=2, tasks=1, inner=1, rate=0.5)
    net, params, w, b = linear()
    dw, db = descent(w, b, TASK["x"][0].numpy(), TASK["y"].numpy())
    dw, db = descent(w - 0.5 * dw, b - 0.5 * db, TASK["query"][0].numpy(), TASK["query_y"].numpy())
    _, grads = outer(own, net, params, TASK)
    np.testing.assert_allclose(grads["head.weight"].numpy(), dw, atol=1e-12)
    np.testing.assert_allclose(grads["head.bias"].numpy(), db, atol=1e-12)


def test_anil_on_a_network_that_is_all_head_is_maml() -> None:
    net, params, *_ = linear()
    found = [outer(recipe(name, way=2, tasks=1, inner=2, rate=0.5), net, params, TASK) for name in ("maml", "anil")]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def test_meta_sgd_with_equal_rates_is_maml_and_its_rates_have_the_gradient_of_the_formula() -> None:
    net = conv4(SHAPE, 3, 3, norm="batch")
    own, other = (recipe(name, way=3, tasks=2, inner=1, rate=0.3) for name in ("meta_sgd", "maml"))
    params, given = params_of(net), episode(other)
    more = own.extra_params(net, params)
    assert set(more) == {f"rate.{k}" for k in params if k not in net.still}
    loss, grads = outer(own, net, params | more, given)
    expected, wanted = outer(other, net, params, given)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close({k: grads[k] for k in wanted}, wanted, rtol=0, atol=1e-12)
    rates = {k.removeprefix("rate."): p.clone().requires_grad_() for k, p in more.items()}
    objective = _plain_rates(params, given, rates)
    by_rate = torch.autograd.grad(objective, list(rates.values()))
    torch.testing.assert_close({k: grads[f"rate.{k}"] for k in rates}, dict(zip(rates, by_rate, strict=True)), rtol=0,
                               atol=1e-9)


def _plain_rates(params: Params, given: dict[str, Any], rates: Params) -> Tensor:
    module, total = Plain(3, 3).double(), torch.zeros((), dtype=torch.float64)
    for x, query in zip(given["x"], given["query"], strict=True):
        at = {k: params[k].clone().requires_grad_() for k in rates}
        loss = F.cross_entropy(torch.func.functional_call(module, at, (x,)), given["y"])
        grads = torch.autograd.grad(loss, list(at.values()))
        fast = {k: at[k].detach() - rates[k] * d for k, d in zip(at, grads, strict=True)}
        total = total + F.cross_entropy(torch.func.functional_call(module, fast, (query,)), given["query_y"])
    return total / len(given["x"])


# ---- Reptile


def test_reptile_goes_from_the_parameters_to_the_mean_of_where_its_tasks_end() -> None:
    own = recipe("reptile", way=2, shots=2, tasks=2, inner=2, batch=2, rate=0.1, lr=0.5, steps=4)
    net, params, w, b = linear()
    x = torch.randn(2, 4, 2, generator=g(), dtype=torch.float64)
    y = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    ends = []
    for task in range(2):  # Adam with beta1 = 0 and beta2 = 0.999, on rows 0 and 1, then 2 and 3
        at, square = [w.copy(), b.copy()], [np.zeros_like(w), np.zeros_like(b)]
        for step, part in enumerate((slice(0, 2), slice(2, 4))):
            grads = descent(*at, x[task, part].numpy(), y[task, part].numpy())
            for i, d in enumerate(grads):
                square[i] = 0.999 * square[i] + 0.001 * d**2
                at[i] = at[i] - 0.1 * d / (np.sqrt(square[i] / (1 - 0.999 ** (step + 1))) + 1e-8)
        ends.append(at)
    _, grads = outer(own, net, params, {"x": x, "y": y})
    moved = {k: p.clone() for k, p in params.items()}
    own.optimizer(1).update(moved, grads, own.optimizer(1).init(moved))
    share = 0.5 * (1 - 1 / 4)  # the second of four steps
    for i, (name, begin) in enumerate((("head.weight", w), ("head.bias", b))):
        goal = (ends[0][i] + ends[1][i]) / 2
        np.testing.assert_allclose(moved[name].numpy(), begin + share * (goal - begin), atol=1e-9)


def test_the_first_inner_step_of_reptile_is_the_sign_of_the_gradient() -> None:
    own = recipe("reptile", way=2, shots=2, tasks=1, inner=1, batch=4, rate=0.1)
    net, params, w, b = linear()
    x, y = torch.cat([TASK["x"], TASK["query"]], 1), torch.tensor([[0, 1, 0, 1]])
    dw, db = descent(w, b, x[0].numpy(), y[0].numpy())
    _, grads = outer(own, net, params, {"x": x, "y": y})
    np.testing.assert_allclose(grads["head.weight"].numpy(), 0.1 * np.sign(dw), atol=1e-6)
    np.testing.assert_allclose(grads["head.bias"].numpy(), 0.1 * np.sign(db), atol=1e-6)


def test_reptile_shows_every_class_as_often_in_random_order() -> None:
    given = episode(recipe("reptile", way=3, shots=4, tasks=5))
    assert given["x"].shape == (5, 12, *SHAPE)
    assert bool((given["y"].sort(1).values == torch.arange(3).repeat_interleave(4)).all())
    assert len({tuple(y.tolist()) for y in given["y"]}) == 5


# ---- tasks


def test_shots_and_queries_of_a_task_are_different_examples_of_its_classes() -> None:
    source = tiny(6, 4)
    rows = {tuple(x.flatten().tolist()): i for i, x in enumerate(source.x.double())}
    given = episode(recipe("maml", way=3, shots=1, queries=3, tasks=7), source)
    for x, query in zip(given["x"], given["query"], strict=True):
        shown = [rows[tuple(each.flatten().tolist())] for each in x]
        asked = [rows[tuple(each.flatten().tolist())] for each in query]
        assert len({*shown, *asked}) == 12 and len({row // 4 for row in shown}) == 3
        assert [row // 4 for row in asked] == [shown[unit] // 4 for unit in given["query_y"].tolist()]


def test_a_task_of_several_domains_is_one_domain_with_units_that_stay() -> None:
    source = digits.rotations(domains=4)
    sampler = source.sampler(g())
    domains = set()
    for _ in range(40):
        rows = sampler.task(5, 3)
        assert rows.shape == (10, 3)
        assert torch.equal(sampler.fetch(rows)[1], torch.arange(10).unsqueeze(1).expand(10, 3))
        domains |= set((rows // len(source.y)).flatten().tolist())
        assert len(set((rows // len(source.y)).flatten().tolist())) == 1
    assert domains == {0, 1, 2, 3}
    assert recipe("maml", way=5).units(source) == 10 and recipe("maml", way=5).units(tiny()) == 5


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta_sgd", "reptile"])
def test_learning_lets_a_task_be_learned(name: str) -> None:
    source, net = glyphs.source(classes=12), conv4((1, 28, 28), 3, 8, norm="batch")
    hyper = {"steps": 1, "way": 3, "test_inner": 3}
    own = recipe(name, **hyper, **({"shots": 4} if name == "reptile" else {"tasks": 4}))
    params, logs = learn(own, net, source)
    assert logs["loss"].isfinite().all()
    rows = source.sampler(g(3)).task(3, 4)
    x, _ = source.sampler(g()).fetch(rows)
    shown, query, y = x[:, :2].flatten(0, 1), x[:, 2:].flatten(0, 1), torch.arange(3).repeat_interleave(2)
    assert own.answer is not None
    scores = own.answer(net, params, shown, y, query, 3)
    assert scores.shape == (6, 3)
    alone = torch.cat([own.answer(net, params, shown, y, one, 3) for one in query.split(1)])
    torch.testing.assert_close(alone, scores, rtol=1e-3, atol=1e-4)  # a query is answered by itself
    fewer = own.answer(net, params, shown[:4], y[:4], query, 2)
    assert fewer.shape == (6, 2)
    with pytest.raises(ValueError, match=r"has 3 output units.*way=4"):
        own.answer(net, params, x[:, 0].repeat(2, 1, 1, 1)[:4], torch.arange(4), query, 4)


def test_an_answer_takes_as_many_steps_as_asked_for() -> None:
    net, params, w, b = linear()
    own = recipe("maml", way=2, rate=0.5, test_inner=2)
    at = [w, b]
    for _ in range(2):
        at = [p - 0.5 * d for p, d in zip(at, descent(*at, TASK["x"][0].numpy(), TASK["y"].numpy()), strict=True)]
    assert own.answer is not None
    scores = own.answer(net, params, TASK["x"][0], TASK["y"], TASK["query"][0], 2)
    np.testing.assert_allclose(scores.numpy(), TASK["query"][0].numpy() @ at[0].T + at[1], atol=1e-12)


@pytest.mark.parametrize(("name", "precise"), [("maml", True), ("fomaml", True), ("meta_sgd", True), ("reptile", True),
                                               ("anil", False)])
def test_bfloat16_is_refused_where_torch_has_no_gradients_for_it(name: str, precise: bool) -> None:
    term, source = parse(f"{name}(steps=1, way=3, tasks=2, model='conv4(width=2)')"), glyphs.source(classes=4)
    if precise:
        with pytest.raises(ValueError, match=f"{name} cannot be learned in bfloat16"):
            Pretraining(term, source, precision="bfloat16")
    else:
        todo = Pretraining(term, source, precision="bfloat16")
        learn(todo.recipe, todo.net, source, precision="bfloat16")


@pytest.mark.parametrize(("make", "said"), [
    (lambda: family.maml(way=1), "way must be 2"), (lambda: family.fomaml(rate=0), "rate must be above"),
    (lambda: family.anil(inner=0), "inner must be 1"), (lambda: family.meta_sgd(lr=-1.0), "lr must be above"),
    (lambda: family.reptile(batch=0), "batch must be 1"), (lambda: family.maml(steps=0), "steps must be 1"),
])
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
