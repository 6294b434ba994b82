"""Every strategy of the catalogue, and sums of them, pass every check; and every check catches what it is there for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lifelong.experiments.contract import (
    CHECKS,
    Subject,
    failures,
    observe_is_pure,
    one_equals_many,
    pads_do_not_count,
    run_checks,
)
from lifelong.experiments.prepare import prepare
from lifelong.networks.mlp import mlp
from lifelong.networks.module import from_module
from lifelong.networks.net import Net, Params, classifier
from lifelong.networks.norms import norm_layer, normalised
from lifelong.spec import catalogue, expression
from lifelong.spec.expression import Term
from lifelong.spec.run import Options

SUMS = ["er + ewc", "er + lwf", "agem + ewc", "random + er + lwf", "er(memory='class-balanced') + ewc(mode='online')",
        "joint + ewc", "cumulative + er", "finetune + er(replay=3)", "er + er(capacity=2)",
        "ewc(samples=7, labels='empirical')", "er + agem + ewc + lwf", "er(memory='ring', combine='mean') + ewc",
        "er_ace + lwf", "derpp + ewc", "mir + der", "gss + er_ace", "ewc(labels='batched', batch=4)",
        "ewc(samples=7, labels='sampled') + si", "er + si", "mas + lwf", "rwalk(every=2) + er + l2", "xdg + si",
        "xdg + ewc(mode='online')", "packnet(after=2)", "er(combine='tasks') + si", "gem + er", "icarl + ewc",
        "dgr(distil=True) + ewc", "ncm(distance='cosine')", "ncm(distance='mahalanobis')", "gemcl(head='map')"]
SUBJECTS = [*catalogue.catalogue("strategies"), *SUMS]


LARGE = 20  # more than a few steps of the tiny stream need: memories become full, and what trains inside does not take long


def small(strategy: str) -> list[Term]:
    """The terms of an expression, with whole numbers that were chosen for real streams brought down to `LARGE`."""

    def fitting(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(fitting, value))
        return min(value, LARGE) if type(value) is int else value

    return [replace(term, given={name: fitting(value) for name, value in term.resolved().items()})
            for term in expression.parse(strategy)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", SUBJECTS)
def test_a_strategy_keeps_the_contract(strategy, check):
    assert check(Subject(small(strategy))) is None


PLAIN = mlp((8,), 6, (12,))


def with_batch_norm() -> Net:
    """The network of the other subjects, with batch normalisation of its hidden layer."""

    def init(g: torch.Generator) -> Params:
        params = PLAIN.init(g)
        norm_layer(params, "norm0", 12, "batch")
        return params

    def through(params: Params, x: torch.Tensor, own: Params | None = None, real: torch.Tensor | None = None):
        z = F.linear(x, params["hidden0.weight"], params["hidden0.bias"])
        return normalised(params, "norm0", z[:, :, None, None], "batch", own, real).flatten(1).relu()

    return classifier(init, through, ("norm0.mean", "norm0.var"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", ["er + lwf", "derpp + agem", "gdumb"])
def test_a_strategy_keeps_the_contract_with_batch_normalisation(strategy, check):
    assert check(Subject(small(strategy), net=with_batch_norm())) is None


class Module(nn.Module):
    """A module with batch normalisation, whose statistics follow within the few steps of the checks, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm = nn.Linear(8, 60), nn.BatchNorm1d(60, momentum=0.5)
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(60, 6)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.hidden(x)).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.features(x)))


MODULE = from_module(Module, torch.ones(2, 8))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", ["er", "ewc", "derpp", "agem", "mir", "lwf", "si", "gdumb(steps=10)", "icarl"])
def test_a_strategy_keeps_the_contract_with_a_module_that_normalises_batches_and_drops_units(strategy, check):
    assert check(Subject(expression.parse(strategy), net=MODULE)) is None


@pytest.mark.parametrize("check", [observe_is_pure, one_equals_many, pads_do_not_count], ids=lambda check: check.__name__)
@pytest.mark.parametrize("strategy", ["mer(replay=1, steps=1)", "la_maml(glances=1, replay=2)", "packnet", "dgr"])
def test_what_refuses_batch_normalisation_or_learns_otherwise_takes_dropout(strategy, check):
    net = from_module(lambda: nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 6)),
                      torch.ones(2, 8))
    assert check(Subject(expression.parse(strategy), net=net)) is None


def test_two_bounds_cannot_be_summed():
    with pytest.raises(ValueError, match="one bound"):
        list(run_checks("joint + cumulative"))


@pytest.mark.parametrize(("sum_", "why"), [
    ("icarl + dgr", "in place of the loss of the batch"), ("icarl + icarl(capacity=9)", "in place of the loss"),
    ("gdumb + er", "gdumb is a whole learner"), ("ewc + mer", "mer is a whole learner"),
    ("la_maml + mer", "la_maml is a whole learner")])
def test_a_sum_that_makes_no_sense_is_refused_with_the_reason(sum_, why):
    with pytest.raises(ValueError, match=why):
        list(run_checks(sum_))


# ---- what the checks are there for: each strategy is wrong in one way

HEAD = "import torch\nfrom lifelong import Learner, Part\nfrom lifelong.learning.losses import cross_entropy\n"

COUNTER = "init=lambda view: {'n': torch.zeros(3)}"
ROWS = "init=lambda view: {'rows': torch.full((4,), -1)}"

# name: the code of `wrong`, the check that must catch it, words of the rule, and the line to be named
WRONG: dict[str, tuple[str, str, str, str]] = {
    "reads a number with item": (f"""
def wrong():
    def step(view):
        return {{'n': view.state['n'] + view.batch.weight.sum().item()}}  # here
    return Part({COUNTER}, step=step)
""", "one_equals_many", "reads a number out of a tensor", "here"),
    "reads a number with float": (f"""
def wrong():
    def step(view):
        return {{'n': view.state['n'] + float(view.batch.weight.sum())}}  # here
    return Part({COUNTER}, step=step)
""", "one_equals_many", "reads a number out of a tensor", "here"),
    "branches on a tensor": (f"""
def wrong():
    def step(view):
        return {{'n': view.state['n'] + (1 if view.batch.weight.sum() > 0 else 0)}}  # here
    return Part({COUNTER}, step=step)
""", "one_equals_many", "reads a number out of a tensor", "here"),
    "indexes with a mask": (f"""
def wrong():
    def step(view):
        rows = view.batch.rows[view.batch.rows >= 0]  # here
        return {{'n': view.state['n'] + rows.sum()}}
    return Part({COUNTER}, step=step)
""", "one_equals_many", "shape of a result depends on values", "here"),
    "draws random numbers": ("""
def wrong():
    def loss(view):
        return (view.batch.scores * torch.rand(6)).sum() * 1e-3  # here
    return Part(loss=loss)
""", "one_equals_many", "random numbers of its own", "here"),
    "draws random numbers and repeats a step": ("""
def wrong():
    return Part(loss=lambda view: (view.batch.scores * torch.rand(6)).sum() * 1e-3)
""", "observe_is_pure", "two results", ""),
    "writes into its state": (f"""
def wrong():
    def step(view):
        view.state['n'].add_(1.0)
        return view.state
    return Part({COUNTER}, step=step)
""", "observe_is_pure", "writes into the state", ""),
    "writes into what all lanes share": (f"""
def wrong():
    shared = torch.zeros(3)
    def step(view):
        shared.add_(view.batch.weight.sum())  # here
        return view.state
    return Part({COUNTER}, step=step)
""", "one_equals_many", "writes into a tensor", "here"),
    "remembers without bound": (f"""
def wrong():
    return Part({ROWS}, step=lambda view: {{'rows': torch.cat([view.state['rows'], view.batch.rows])}})
""", "state_is_tensors", "shapes or types", ""),
    "changes the type of its state": (f"""
def wrong():
    return Part({COUNTER}, step=lambda view: {{'n': view.state['n'].double()}})
""", "state_is_tensors", "shapes or types", ""),
    "keeps a list": ("""
def wrong():
    return Part(init=lambda view: {'n': [1, 2]})
""", "state_is_tensors", "state", ""),
    "counts pads in its loss": ("""
def wrong():
    return Part(loss=lambda view: torch.nn.functional.cross_entropy(view.batch.scores, view.batch.y))
""", "pads_do_not_count", "weight", ""),
    "remembers the examples at pads": ("""
def wrong():
    def step(view):
        return {'mean': view.state['mean'] * 0.9 + view.batch.x.mean(0) * 0.1}
    return Part(init=lambda view: {'mean': torch.zeros(8, dtype=view.pool.dtype)}, step=step)
""", "pads_do_not_count", "pad", ""),
    "counts calls outside its state": (f"""
def wrong():
    calls = [0]
    def step(view):
        calls[0] += 1
        return {{'n': torch.full((3,), float(calls[0]))}}
    return Part({COUNTER}, step=step)
""", "observe_is_pure", "two results", ""),
    "starts from global random numbers": ("""
def wrong():
    return Part(init=lambda view: {'noise': torch.rand(3)}, loss=lambda view: 1e-3 * view.state['noise'].sum()
                * view.batch.scores.sum())
""", "one_equals_many", "differs", ""),
    "answers by the batch": ("""
def wrong(net):
    from lifelong.networks.net import Params
    def init(seed, pool):
        return {'n': torch.zeros(())}
    def predict(state, pool, x):
        return (x - x.mean(0))[:, :6]
    return Learner(init, lambda state, pool, batch: (state, {}), predict)
""", "predicts_scores", "examples beside it", ""),
    "answers with classes": ("""
def wrong():
    return Learner(lambda seed, pool: {'n': torch.zeros(())}, lambda state, pool, batch: (state, {}),
                   lambda state, pool, x: torch.zeros(len(x)))
""", "predicts_scores", "[n, C]", ""),
    "does not learn": ("""
def wrong():
    return Learner(lambda seed, pool: {'n': torch.zeros(())}, lambda state, pool, batch: (state, {}),
                   lambda state, pool, x: torch.zeros(len(x), 6))
""", "learns", "accuracy", ""),
    "branches on a real hyper-parameter": ("""
def wrong(strength: float = 1.0):
    def loss(view):
        return view.batch.scores.sum() * (strength if strength > 0.6 else 0.0) * 1e-3  # here
    return Part(loss=loss)
""", "settings_are_lanes", "swept in one stack", "here"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_check_catches_a_strategy_that(name, tmp_path):
    code, check, words, mark = WRONG[name]
    file = tmp_path / "mine.py"
    file.write_text(HEAD + code)
    said = {one: wrong for one, wrong in run_checks(f"{file}:wrong") if wrong}
    assert check in said, f"not caught; only {said}"
    assert words in said[check]
    if mark:
        line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if f"# {mark}" in text)
        assert re.search(rf"\(mine\.py, line {line}, in \w+\)", said[check])


def test_what_keeps_something_outside_its_state_is_refused_before_it_is_run(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + WRONG["counts calls outside its state"][0])
    with pytest.raises(ValueError, match="keeps something outside its state"):
        prepare("split-digits(tasks=2)", [f"{tmp_path / 'mine.py'}:wrong"], Options(seeds=2, steps=2))


def test_a_strategy_with_one_fault_passes_the_other_checks(tmp_path):
    (tmp_path / "mine.py").write_text(HEAD + WRONG["does not learn"][0].replace("wrong", "idles"))
    assert [f.split(":")[0] for f in failures(f"{tmp_path / 'mine.py'}:idles")] == ["learns"]


# ---- objects

OBJECT = """
import torch
import numpy as np

class {name}:
    def __init__(self, shape, n_classes):
        self.net = torch.nn.Linear(shape[0], n_classes).double()
        self.mean = torch.zeros(shape[0], dtype=torch.float64)
        self.other = np.random.default_rng()
    def observe(self, x, y, task):
        self.mean = 0.9 * self.mean + 0.1 * x.double().mean(0)
        noise = {noise}
        loss = torch.nn.functional.cross_entropy(self.net(x.double() - self.mean + noise), y)
        for p, g in zip(self.net.parameters(), torch.autograd.grad(loss, list(self.net.parameters()))):
            p.data -= 0.3 * g
        {extra}
        return loss.item()
    def end_task(self):
        pass
    def predict(self, x):
        return self.net(x.double() - self.mean)
    def state_dict(self):
        return {state}
    def load_state_dict(self, state):
        self.net.load_state_dict(state['net'])
        self.mean = state.get('mean', self.mean)
"""
ALL = "{'net': {k: v.clone() for k, v in self.net.state_dict().items()}, 'mean': self.mean.clone()}"
OWN = "torch.from_numpy(self.other.normal(size=x.shape)) * 3"


def an_object(folder: Path, name: str, noise: str = "0.0", state: str = ALL, extra: str = "pass") -> str:
    (folder / "mine.py").write_text(OBJECT.format(name=name, noise=noise, state=state, extra=extra))
    return f"{folder / 'mine.py'}:{name}"


def test_a_good_object_passes(tmp_path):
    assert failures(an_object(tmp_path, "Good")) == []
    assert failures(an_object(tmp_path, "Good", noise="0.1 * torch.randn(x.shape)")) == []  # torch's own is seeded


def test_an_object_whose_state_dict_forgets_something_is_caught(tmp_path):
    (said,) = failures(an_object(tmp_path, "Forgets", state=ALL.split(", 'mean'")[0] + "}"))
    assert said.startswith("resumes_to_the_same_bits") and "not in it" in said


def test_an_object_with_randomness_of_its_own_is_caught(tmp_path):
    said = failures(an_object(tmp_path, "Random", noise=OWN))
    assert any(s.startswith("same_seed_same_result") and "randomness" in s for s in said)


@pytest.mark.parametrize(("part", "value", "words"), [
    ("extra", "raise RuntimeError('the disk of doom')", "the disk of doom"),
    ("state", "{'net': self.net.state_dict(), 'mean': self.mean, 'more': self.other}", "state_dict"),
])
def test_an_object_that_raises_is_a_failure_and_not_a_crash(tmp_path, part, value, words):
    said = failures(an_object(tmp_path, "Raises", **{part: value}))
    assert any(words in s for s in said)


LAYERS = """
import torch
from torch import nn

class Layers:
    def __init__(self, shape, n_classes):
        self.net = nn.Sequential(nn.Linear(shape[0], 30), {layer}, nn.ReLU(), nn.Linear(30, n_classes))
        self.optimizer = torch.optim.SGD(self.net.parameters(), 0.3)
    def observe(self, x, y, task):
        self.net.train()
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item() {times}
    def end_task(self):
        pass
    def predict(self, x):
        {first}
        return self.net(x)
"""


@pytest.mark.parametrize(("layer", "first", "times", "said"), [
    ("nn.Dropout(0.5)", "pass", "", ["predicts_scores", "two answers", "dropout", "eval()"]),
    ("nn.BatchNorm1d(30)", "pass", "", ["predicts_scores", "the examples beside it", "batch normalisation", "eval()"]),
    ("nn.Dropout(0.1)", "self.net.eval()", "", []),
    ("nn.BatchNorm1d(30)", "self.net.eval()", "", []),
    ("nn.Identity()", "pass", "* float('nan')", ["learns: its loss or a score is not finite at task 0, step 0"]),
])
def test_an_object_answers_each_example_by_itself(tmp_path, layer, first, times, said):
    (tmp_path / "mine.py").write_text(LAYERS.format(layer=layer, first=first, times=times))
    found = failures(f"{tmp_path / 'mine.py'}:Layers")
    assert len(found) == bool(said) and all(word in found[0] for word in said)
