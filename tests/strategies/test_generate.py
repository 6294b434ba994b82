"""The generator learns what it is shown, and invented examples stand for those of earlier tasks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import value_of
from lifelong.strategies.generate import Autoencoder, dgr, normals
from lifelong.streams.digits import split
from scipy.stats import kstest
from torch import Tensor

from lifelong.experiments.compose import compose
from lifelong.experiments.contract import tiny
from lifelong.learning.engine import train
from lifelong.learning.lanes import Lanes
from lifelong.learning.losses import Slice
from lifelong.learning.optim import adam
from lifelong.learning.parts import View
from lifelong.learning.schedule import Budget
from lifelong.networks.mlp import mlp
from lifelong.randomness import generator
from lifelong.spec.expression import parse


def test_normal_numbers_are_normal_and_finite():
    u = torch.tensor(0.7, dtype=torch.float64)
    assert kstest(normals(u, 20_000, torch.float64).numpy(), "norm").pvalue > 1e-3
    assert bool(torch.func.vmap(lambda u: normals(u, 64, torch.float32))(torch.rand(5_000).double()).isfinite().all())
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)  # the ends of what `many` can give
    assert bool(torch.erfinv(2 * ends - (1 - 2.0**-53)).isfinite().all())


def test_the_generators_loss_is_the_evidence_bound():
    g = torch.Generator().manual_seed(3)
    own = Autoencoder((2, 3), (5,), 4)
    params = own.init(g, torch.float64)
    x, noise = torch.rand(7, 2, 3, generator=g).double(), torch.randn(7, 4, generator=g).double()
    mean, log_variance = own.nets["encoder"].apply({k[8:]: p for k, p in params.items() if k[0] == "e"}, x).chunk(2, 1)
    code = torch.distributions.Normal(mean, (log_variance / 2).exp())
    pixels = own.nets["decoder"].apply({k[8:]: p for k, p in params.items() if k[0] == "d"}, mean + noise * code.stddev)
    there = torch.distributions.ContinuousBernoulli  # has the cross-entropy of a Bernoulli, less its normalisation
    rebuilt = there(logits=pixels).log_prob(x.flatten(1)) - there(logits=pixels)._cont_bern_log_norm()
    divergence = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(own.loss(params, x, noise), divergence - rebuilt.sum(1), atol=1e-9, rtol=1e-9)


def test_the_generator_learns_digits():
    x = split([0]).pool().fetch(torch.arange(300))[0]
    own, optimizer = Autoencoder(x.shape[1:], (64,), 8), adam(0.003)
    params = own.init(generator("vae"), torch.float32)
    moments, g, losses = optimizer.init(params), torch.Generator().manual_seed(0), []
    for _ in range(150):
        grads, loss = torch.func.grad_and_value(
            lambda p: own.loss(p, x, torch.randn(300, 8, generator=g)).mean())(params)
        optimizer.update(params, grads, moments)
        losses.append(float(loss))
    assert losses[0] > 44  # 64 pixels at ln 2 each
    assert sum(losses[-10:]) / 10 < 32
    sample = own.sample(params, torch.randn(500 * 8, generator=g))
    assert float((sample.mean(0) - x.mean(0)).abs().mean()) < 0.05


def inside(scenario: str, task: int) -> tuple[View, Tensor, Tensor]:
    """A view of dgr inside a task with the default generator's numbers, the invented examples, and their answers."""
    pool, net, g = tiny([0], scenario=scenario).pool(dtype=torch.float64), mlp((8,), 6, hidden=(12,)), generator("view")
    params, before = ({k: p.double() for k, p in net.init(g).items()} for _ in range(2))
    part = dgr(hidden=(10,), latent=3)
    view = View({}, before, net, pool, generator=g)
    state = part.init(view)
    rows = torch.tensor([40, 45, 60, -1])
    x, y = pool.fetch(rows)
    batch = Slice(rows, torch.tensor([1, 1, 1, 0]).double() / 3, x, y, net.apply(params, x))
    view = View(state, params, net, pool, torch.tensor([0.4], dtype=torch.float64), torch.tensor(task), batch)
    noise = normals(view.u[0], 4 * 3, torch.float64)
    invented = Autoencoder((8,), (10,), 3).sample(state["generator"], noise)
    return view, invented, net.apply(before, invented)


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize(("scenario", "old", "rivals"), [
    ("class", [[0, 1, 2, 3]], [[0, 1, 2, 3, 4, 5]]), ("domain", [[0, 1, 2, 3, 4, 5]], [[0, 1, 2, 3, 4, 5]]),
    ("task", [[0, 1], [2, 3]], [[0, 1], [2, 3]])])
def test_the_loss_weighs_new_and_invented_examples_as_the_tasks_count(scenario, old, rivals, distil):
    view, invented, answers = inside(scenario, 2)
    scores, replay = view.net.apply(view.params, invented), 0.0
    for units, against in zip(old, rivals, strict=True):
        log_p = (scores / (2 if distil else 1))[:, against].log_softmax(-1)
        if distil:  # T^2 KL, where units that the earlier network did not know have probability 0
            q = (answers / 2)[:, units].softmax(-1)
            replay += 4 * float((q * (q.log() - log_p[:, :len(units)])).sum(-1).mean()) / len(old)
        else:
            replay += float(F.nll_loss(log_p, answers[:, units].argmax(-1))) / len(old)
    own = view.batch.scores[:3]
    own = own[:, 2:4] if scenario == "task" else own
    new = float(F.cross_entropy(own, view.batch.y[:3] - (2 if scenario == "task" else 0)))
    competing = view.pool.rivals(view.batch.y)
    loss = dgr(distil=distil, hidden=(10,), latent=3).criterion(view)
    assert float(value_of(loss, view.batch, competing=competing)) == pytest.approx(new / 3 + replay * 2 / 3, rel=1e-9)
    first = dgr(distil=distil, hidden=(10,), latent=3).criterion(view._replace(task=torch.tensor(0)))
    assert float(value_of(first, view.batch, competing=competing)) == pytest.approx(new, rel=1e-9)


def test_the_generators_step_is_adams_on_real_and_invented_examples():
    view, invented, _ = inside("class", 1)
    own, start = Autoencoder((8,), (10,), 3), view.state["generator"]
    leaves = {k: p.clone().requires_grad_() for k, p in start.items()}
    optimizer = torch.optim.Adam(leaves.values(), 0.001)
    noise = normals(view.u[0], 36, torch.float64).view(3, 4, 3)
    new = own.loss(leaves, view.batch.x, noise[1])[:3].mean()
    (new / 2 + own.loss(leaves, invented, noise[2]).mean() / 2).backward()
    optimizer.step()
    state = dgr(hidden=(10,), latent=3).step(view)
    for k, p in leaves.items():
        torch.testing.assert_close(state["generator"][k], p.detach(), atol=1e-12, rtol=1e-10)
    assert all(torch.equal(state["earlier"]["decoder"][k], start[k]) for k in state["earlier"]["decoder"])
    ended = dgr(hidden=(10,), latent=3).task(view._replace(state=state))
    assert all(torch.equal(ended["earlier"]["decoder"][k], state["generator"][k]) for k in ended["earlier"]["decoder"])
    assert all(torch.equal(ended["earlier"]["net"][k], p) for k, p in view.params.items())


def test_it_forgets_less_than_finetuning_on_class_incremental_digits():
    def accuracy(strategy: str, steps: int) -> float:
        stream, net = split([0]), mlp((1, 8, 8), 10)
        lanes = Lanes(stream, [0], [0], lambda hyper: compose(parse(strategy), {"net": net}, adam(), hyper))
        return float(train(lanes, Budget(32, 1, steps)).accuracy[0, -1].mean())

    assert accuracy("finetune", 50) < 0.25
    assert accuracy("dgr(hidden=(64,), latent=8, rate=0.003, distil=True)", 100) > 0.5
