"""Streams whose targets are numbers, and streams of tokens, are learned like any other."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lifelong
from lifelong import metrics, report
from lifelong.data.problem import CLASSIFICATION, REGRESSION, TOKEN_CLASSIFICATION, squared_error_vjp
from lifelong.data.stream import Stream
from lifelong.experiments.contract import tiny
from lifelong.experiments.prepare import prepare
from lifelong.learning.importance import fisher, sensitivity
from lifelong.learning.schedule import Budget, plan
from lifelong.networks.mlp import mlp
from lifelong.randomness import generator
from lifelong.report import canvas
from lifelong.report.score import Score
from lifelong.spec.run import Options

# ---- the problem itself


@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_the_gradient_of_the_squared_error_is_that_of_autograd(axes):
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(*axes, 5, 4, generator=g, dtype=torch.float64, requires_grad=True)
    y, weight = torch.randn(*axes, 5, 4, generator=g).double(), torch.rand(*axes, 5, generator=g).double()
    value, gradient = squared_error_vjp(scores.detach(), y, weight, None)
    expected = (F.mse_loss(scores, y, reduction="none").mean(-1) * weight).sum(-1)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), scores)[0])


def test_losses_and_scores_of_examples_are_those_worked_by_hand():
    scores, y = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert REGRESSION.example_loss(scores, y, None).tolist() == [2.0, 5.0]  # (0 + 4) / 2, (9 + 1) / 2
    assert REGRESSION.score(scores, y).tolist() == [-2.0, -5.0]
    units = torch.tensor([1, 1])
    assert CLASSIFICATION.score(scores, units).tolist() == [True, False]
    assert CLASSIFICATION.example_loss(scores, units, None).tolist() == pytest.approx(
        [math.log(1 + math.exp(-1)), math.log(2)])


# ---- regression


def turned(seeds: list[int], n: int = 40, domains: int = 3, **more: Any) -> Stream:
    """y = x R(angle) + 1 with another angle in each domain, for two-dimensional x."""
    g = torch.Generator().manual_seed(1)
    x, y, train, test = [], [], [], []
    for domain in range(domains):
        angle = domain * math.pi / 4
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
                            dtype=torch.float64)
        own = torch.randn(n, 2, generator=g, dtype=torch.float64)
        x, y = [*x, own], [*y, own @ turn + 1]
        rows = torch.arange(domain * n, (domain + 1) * n)
        train, test = [*train, rows[:n - 10]], [*test, rows[n - 10:]]
    train_rows, test_rows = (torch.stack(rows).expand(len(seeds), -1, -1) for rows in (train, test))
    given: dict[str, Any] = {"scenario": "domain", "problem": REGRESSION} | more
    return Stream("turned-v1", torch.cat(x), torch.cat(y), train_rows, test_rows,
                  torch.ones(len(seeds), domains, 2, dtype=torch.bool), (2,), **given)


LINE: dict[str, Any] = {"model": "mlp(hidden=())", "optimizer": "sgd(lr=0.1)", "epochs": 20, "batch_size": 8,
                        "dtype": "float64"}


def test_finetuning_on_numbers_is_a_plain_torch_loop():
    stream = turned([0])
    run = lifelong.run(stream, "finetune", **LINE)
    net = mlp((2,), 2, ())
    params = {k: p.double().requires_grad_() for k, p in net.init(generator(0, "init")).items()}
    optimizer = torch.optim.SGD(params.values(), 0.1)

    def scores() -> list[float]:
        with torch.no_grad():
            return [-F.mse_loss(net.apply(params, stream.x[rows]), stream.y[rows]).item() for rows in stream.test[0]]

    expected = [scores()]
    for task in range(3):
        losses = []
        for batch in plan(stream, [0], task, "task", Budget(8, 20)).rows[0].split(8):
            batch = batch[batch >= 0]
            loss = F.mse_loss(net.apply(params, stream.x[batch]), stream.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        expected.append(scores())
        assert run.logs["loss"][0, task] == pytest.approx(np.mean(losses))
    np.testing.assert_allclose(run.accuracy[0], expected, rtol=1e-10)
    assert run.accuracy[0, 3, 2] > -1e-3, "a line is learned to the end"
    assert run.accuracy[0, 3, 0] < -0.5, "and the first domain is forgotten"


GENERAL = ["finetune", "joint", "cumulative", "er", "er(combine='mean')", "mir", "der", "derpp",
           "mer(replay=2, steps=1)", "la_maml(replay=2, glances=1)", "ewc", "ewc(mode='online')", "ewc(labels='batched')", "l2", "si", "mas", "agem", "gem"]


@pytest.mark.parametrize("strategy", GENERAL)
def test_seeds_in_a_stack_learn_numbers_as_each_does_alone(strategy):
    options = LINE | {"epochs": None, "steps": 6}
    many = lifelong.run(turned([0, 1]), strategy, **options)
    alone = lifelong.run(turned([0]), strategy, **options)
    assert np.isfinite(many.accuracy).all() and (many.accuracy <= 0).all()
    np.testing.assert_allclose(many.accuracy[0], alone.accuracy[0], rtol=1e-9)
    np.testing.assert_allclose(many.logs["loss"][0], alone.logs["loss"][0], rtol=1e-9)
    assert not np.allclose(many.accuracy[0], many.accuracy[1])


def test_replay_and_consolidation_forget_less_than_finetuning():
    kept = {strategy: lifelong.run(turned([0, 1, 2]), strategy, **LINE).accuracy[:, 3, :2].mean()
            for strategy in ("finetune", "er", "ewc(strength=1)")}
    assert kept["er"] > kept["finetune"] + 0.3 and kept["ewc(strength=1)"] > kept["finetune"] + 0.1


CLASSES_ONLY = ["er_ace", "er(memory='class-balanced')", "er(memory='ring')", "mir(memory='ring')", "gss", "lwf", "dgr",
                "icarl", "gdumb", "ncm", "slda", "gemcl", "rwalk", "ewc(labels='empirical')", "ewc(labels='sampled')",
                "er + lwf"]


@pytest.mark.parametrize("strategy", CLASSES_ONLY)
def test_what_learns_classes_refuses_numbers(strategy):
    with pytest.raises(ValueError, match=r"learns classes, and the targets of regression are numbers"):
        prepare(turned([0]), [strategy], Options(seeds=1, model="mlp(hidden=(9,))"))


def test_a_start_refuses_numbers():
    with pytest.raises(ValueError, match="supervised is learned to tell classes apart"):
        prepare(turned([0]), ["supervised(source='glyphs')"], Options(seeds=1))


def test_an_object_learns_numbers():
    class Line:
        def __init__(self) -> None:
            self.net = nn.Linear(2, 2, dtype=torch.float64)
            self.optimizer = torch.optim.SGD(self.net.parameters(), 0.1)

        def observe(self, x: Tensor, y: Tensor, task: int | None) -> float:
            assert y.shape == (len(x), 2) and y.dtype == torch.float64
            loss = F.mse_loss(self.net(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            return loss.item()

        def end_task(self) -> None: ...

        def predict(self, x: Tensor) -> Tensor:
            return self.net(x)

    stream = replace(turned([0]), retention=True)
    run = lifelong.run(stream, Line, epochs=20, dtype="float64")
    assert run.accuracy[0, 1, 0] > -1e-3 and run.accuracy[0, 3, 0] < -0.5
    assert run.logs["accuracy_train"][0, 1, 0] > -1e-3


@pytest.mark.parametrize(("net", "rows"), [(mlp((2,), 2, (5,)), 7), (mlp((2,), 2, ()), 7)])
def test_the_exact_fisher_of_numbers_is_the_expectation_over_gaussian_answers(net, rows):
    pool, at = turned([0]).pool(dtype=torch.float64), torch.arange(rows)
    params = {k: p.double() for k, p in net.init(generator(0)).items()}
    found = fisher(net, params, pool, at, torch.full((rows,), 1 / rows, dtype=torch.float64))
    # With y ~ N(F(x), K / 2) for K = 2 outputs, the gradient of the mean squared error is sum_k e_k dF_k with e_k
    # independent and of variance 2 / K = 1: its expected square is sum_k (dF_k)^2.
    expected = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in at:
        for k in range(2):
            one = torch.func.grad(lambda p, i=i, k=k: net.apply(p, pool.x[i:i + 1])[0, k])(params)
            expected = {name: e + one[name].square() / rows for name, e in expected.items()}
    torch.testing.assert_close(found, expected)
    x = pool.x[at].repeat(2000, 1, 1).flatten(0, 1)  # and it is what drawn answers come to
    y = net.apply(params, x) + torch.randn(len(x), 2, generator=torch.Generator().manual_seed(0)).double()

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return REGRESSION.example_loss(net.apply(params, x.unsqueeze(0)), y.unsqueeze(0), None).squeeze()

    drawn = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, x, y)
    for k, value in expected.items():
        assert float(drawn[k].square().mean(0).sum()) == pytest.approx(float(value.sum()), rel=0.05)


def test_sensitivity_needs_no_classes():
    net = mlp((2,), 2, (5,))
    pool, rows = turned([0]).pool(dtype=torch.float64), torch.arange(6)
    params = {k: p.double() for k, p in net.init(generator(0)).items()}
    found = sensitivity(net, params, pool, rows, torch.full((6,), 1 / 6, dtype=torch.float64))
    expected = {k: torch.zeros_like(p) for k, p in params.items()}
    for i in rows:
        one = torch.func.grad(lambda p, i=i: net.apply(p, pool.x[i:i + 1]).square().sum())(params)
        expected = {k: e + one[k].abs() / 6 for k, e in expected.items()}
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("change", "words"), [
    ({"y": torch.zeros(120)}, r"regression needs finite targets \[N, 2\], .* got \[120\] of torch.float32"),
    ({"y": torch.zeros(120, 3)}, r"got \[120, 3\]"),
    ({"y": torch.zeros(120, 2, dtype=torch.int64)}, "torch.int64"),
    ({"y": torch.full((120, 2), torch.nan)}, "finite"),
    ({"y": torch.zeros(119, 2)}, "as many targets as examples, got 120 examples and 119 targets"),
    ({"scenario": "class"}, "the scenario must be domain"),
    ({"spare": 1}, "no spare unit"),
    ({"label": torch.zeros(1, 1, 2, dtype=torch.int64)}, "no label"),
])
def test_a_stream_of_numbers_is_checked(change, words):
    with pytest.raises(ValueError, match=words):
        replace(turned([0]), **change)


@pytest.mark.parametrize("y", [torch.zeros(66, 2), torch.zeros(66), torch.zeros(66, 1, dtype=torch.int64)])
def test_a_stream_of_classes_is_checked_as_before(y):
    stream = tiny([0])
    with pytest.raises(ValueError, match="needs an int64 label for each example"):
        replace(stream, y=y[:1].expand(len(stream.y), *y.shape[1:]))


# ---- the report


def test_a_report_calls_the_score_by_its_name_and_shows_it_as_it_is(tmp_path):
    runs = [lifelong.run(turned([0, 1, 2]), strategy, **LINE) for strategy in ("finetune", "er")]
    assert all(run.about["score"] == {"name": "negative mean squared error", "percent": False} for run in runs)
    paths = report.write(runs, tmp_path, other=["mammoth"])
    assert len([path for path in paths if path.suffix == ".svg"]) >= 6
    text = (tmp_path / "report.md").read_text()
    theirs = text.index("As computed by Mammoth")
    for words in (text[:theirs], text[text.index("### Figures"):]):
        assert not re.search(r"accurac|[Pp]ercent\b|points", words.replace("average_accuracy", ""))
    assert "average negative mean squared error" in text
    assert "a[t,k] is the negative mean squared error on task k after task t" in text
    (group,) = report.groups(runs)
    cell = "".join(report.tables_of(group)[0].rows[0][1].text)
    mean, half = metrics.mean_interval(metrics.average_accuracy(runs[0].accuracy))
    said = [float(number) for number in cell.split(" ± ")]
    assert said == pytest.approx([float(mean), float(half)], rel=0.01)
    figure = report.figures.curves(group, canvas.looks([group]))
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), metrics.average_curve(runs[0].accuracy).mean(0))
    assert figure.axes[0].get_ylabel() == "negative mean squared error, mean over tasks so far"


@pytest.mark.parametrize(("mean", "half", "text"), [
    (-0.012345, 0.00234, "-0.01235 ± 0.00234"), (-12.3456, 1.5, "-12.35 ± 1.50"), (-1234.5, 250.0, "-1234 ± 250"),
    (-0.5, math.nan, "-0.500"), (0.0, 0.0, "0.0 ± 0.0")])
def test_a_score_is_shown_with_three_digits_of_its_half_width(mean, half, text):
    assert Score("error", percent=False).interval(mean, half) == text


# ---- tokens


def sentences(seeds: list[int], words: int = 20, length: int = 6) -> Stream:
    """Two tasks of two classes each; sentences of a class have words of their own among words that all have."""
    g = torch.Generator().manual_seed(2)
    y = torch.arange(160) % 4
    own = 4 * y.unsqueeze(1) + torch.randint(0, 4, (160, length), generator=g)
    common = torch.randint(16, words, (160, length), generator=g)
    x = torch.where(torch.rand(160, length, generator=g) < 0.6, own, common)
    rows = torch.stack([torch.arange(160)[y // 2 == task] for task in range(2)]).expand(len(seeds), 2, 80)
    classes = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 1).expand(len(seeds), 2, 4)
    return Stream("sentences-v1", x, y, rows[..., :60], rows[..., 60:], classes, (length,), scale=0.1,
                  problem=TOKEN_CLASSIFICATION)


NET = """
from torch import nn

class Bag(nn.Module):
    def __init__(self, words, n_classes):
        super().__init__()
        self.embed, self.line = nn.Embedding(words, 12), nn.Linear(12, n_classes)

    def forward(self, x):
        return self.line(self.embed(x).mean(-2))

def net(n_classes, words: int = 20):
    return Bag(words, n_classes)
"""
TOKENS: dict[str, Any] = {"epochs": 8, "batch_size": 10, "dtype": "float64", "optimizer": "adam(lr=0.01)"}


@pytest.mark.parametrize("strategy", ["finetune", "er", "ewc", "er + ewc", "lwf", "agem"])
def test_tokens_are_embedded_by_a_network_of_ones_own(strategy, tmp_path):
    (tmp_path / "own.py").write_text(NET)
    options = TOKENS | {"model": f"{tmp_path / 'own.py'}:net"}
    many = lifelong.run(sentences([0, 1]), strategy, **options)
    alone = lifelong.run(sentences([0]), strategy, **options)
    np.testing.assert_array_equal(many.accuracy[0], alone.accuracy[0])
    np.testing.assert_allclose(many.logs["loss"][0], alone.logs["loss"][0], rtol=1e-9)
    assert (many.accuracy[:, 1, 0] > 0.9).all(), "the first task is learned"


def test_tokens_stay_as_they_are():
    stream = sentences([0])
    x, _ = stream.pool(dtype=torch.float64).fetch(torch.tensor([3, 5]))
    assert x.dtype == torch.int64 and torch.equal(x, stream.x[[3, 5]])
    scaled, _ = replace(stream, problem=CLASSIFICATION).pool(dtype=torch.float64).fetch(torch.tensor([3]))
    torch.testing.assert_close(scaled, 0.1 * stream.x[3:4].double())


def test_tokens_are_learned_by_lanes_in_turn_too(tmp_path):
    (tmp_path / "own.py").write_text(NET)
    options = TOKENS | {"model": f"{tmp_path / 'own.py'}:net", "epochs": 2}
    whole = lifelong.run(sentences([0, 1]), "er", **options)
    turns = lifelong.run(sentences([0, 1]), "er", memory=1e-6, **options)
    np.testing.assert_array_equal(whole.accuracy, turns.accuracy)


def test_what_would_round_tokens_is_refused(tmp_path):
    (tmp_path / "own.py").write_text(NET)
    with pytest.raises(ValueError, match="bfloat16' rounds examples, and token classification leaves them"):
        prepare(sentences([0]), ["er"], Options(seeds=1, dtype="bfloat16", model=f"{tmp_path / 'own.py'}:net"))
