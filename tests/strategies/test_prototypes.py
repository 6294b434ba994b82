"""Learners without gradients: by hand, against scipy, in any order, and what they refuse."""

import numpy as np
import pytest
import scipy.stats
import torch
from lifelong.strategies.prototypes import gemcl, ncm, slda
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.learning.gaussians import gaussian, student
from lifelong.learning.learner import Batch, Learner, State
from lifelong.networks.mlp import mlp


def pool(x: Tensor, y: Tensor, n_classes: int | None = None) -> Pool:
    classes = torch.ones(1, n_classes or int(y.max()) + 1, dtype=torch.bool)
    return Pool(x, y, tuple(x.shape[1:]), classes, dtype=torch.float64)


def bare(width: int, n_classes: int = 2) -> object:
    """A network whose features are its input."""
    return mlp((width,), n_classes, ())


def shown(learner: Learner, given: Pool, batches: list[list[int]]) -> State:
    state = learner.init(0, given)
    for rows in batches:
        at = torch.tensor(rows)
        weight = (at >= 0).double() / max(1, int((at >= 0).sum()))
        state, _ = learner.observe(state, given, Batch(at, weight, {}, torch.tensor(0)))
    return state


def some(n: int = 40, width: int = 5, n_classes: int = 4) -> Pool:
    g = torch.Generator().manual_seed(3)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, width, generator=g, dtype=torch.float64) + 2 * torch.randn(n_classes, width, generator=g)[y]
    return pool(x * torch.tensor([1.0, 3.0, 0.3, 1.0, 1.0][:width]), y)


EVERY = [lambda net: ncm(net), lambda net: ncm(net, "cosine"), lambda net: ncm(net, "mahalanobis"), lambda net: slda(net),
         lambda net: gemcl(net, alpha=3.0, beta=2.0), lambda net: gemcl(net, "map", alpha=3.0, beta=2.0)]


@pytest.mark.parametrize("make", EVERY)
def test_order_and_batches_do_not_matter(make):
    given = some()
    learner = make(bare(5, 4))
    every = list(range(30))
    shuffled = [every[i:i + 7] for i in range(0, 30, 7)][::-1]
    one, other = shown(learner, given, [[r] for r in every]), shown(learner, given, [[-1, *b, -1] for b in shuffled])
    x = given.x[30:]
    torch.testing.assert_close(learner.predict(one, given, x), learner.predict(other, given, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", EVERY)
def test_a_class_that_was_not_seen_is_never_answered(make):
    given = pool(torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 2, 2, 2]), 3)
    learner = make(bare(4, 3))
    scores = learner.predict(shown(learner, given, [[0, 1, 2, 3, 4, 5]]), given, given.x)
    assert (scores[:, 1] == -torch.inf).all()
    assert scores[:, [0, 2]].isfinite().all()


def test_ncm_by_hand():
    # Means (1, 0) and (0, 4). The query (3, 3) is 13 and 10 away, squared, but its cosine to both is 1/sqrt 2.
    given = pool(torch.tensor([[0.0, 0], [2, 0], [0, 3], [0, 5]], dtype=torch.float64), torch.tensor([0, 0, 1, 1]))
    asked = torch.tensor([[3.0, 3.0], [4.0, 3.0]], dtype=torch.float64)
    learner = ncm(bare(2))
    scores = learner.predict(shown(learner, given, [[0, 1, 2, 3]]), given, asked)
    torch.testing.assert_close(scores**2, torch.tensor([[13.0, 10], [18, 17]], dtype=torch.float64))
    learner = ncm(bare(2), "cosine")
    scores = learner.predict(shown(learner, given, [[0, 1, 2, 3]]), given, asked)
    torch.testing.assert_close(scores, torch.tensor([[0.5**0.5, 0.5**0.5], [0.8, 0.6]], dtype=torch.float64))


def test_mahalanobis_distance_is_that_of_the_shrunk_covariance():
    given = some()
    learner = ncm(bare(5, 4), "mahalanobis", shrinkage=0.3)
    scores = learner.predict(shown(learner, given, [list(range(32))]), given, given.x[32:]).numpy()
    x, y = given.x[:32].numpy(), given.y[:32].numpy()
    means = np.stack([x[y == c].mean(0) for c in range(4)])
    s = np.cov((x - means[y]).T, bias=True)
    inverse = np.linalg.inv(0.7 * s + 0.3 * np.trace(s) / 5 * np.eye(5))
    away = given.x[32:].numpy()[:, None] - means
    distance = np.einsum("ncf,fg,ncg->nc", away, inverse, away)
    np.testing.assert_allclose(scores - scores[:, :1], -(distance - distance[:, :1]) / 2, rtol=1e-9, atol=1e-9)


def test_mahalanobis_distance_does_not_change_with_the_scale_of_features():
    given = some()
    learner = ncm(bare(5, 4), "mahalanobis")
    far = pool(given.x * 1000, given.y)
    one, other = (learner.predict(shown(learner, p, [list(range(32))]), p, p.x[32:]) for p in (given, far))
    torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_mahalanobis_distance_works_after_a_single_example():
    given = some()
    learner = ncm(bare(5, 4), "mahalanobis")
    scores = learner.predict(shown(learner, given, [[0]]), given, given.x)
    assert scores[:, 0].isfinite().all()


@pytest.mark.parametrize("width", [3, 8])  # one logarithm for four features, or one for each
def test_gemcls_predictive_head_is_students_t(width):
    g = torch.Generator().manual_seed(0)
    z, m = (torch.randn(n, width, generator=g, dtype=torch.float64) for n in (6, 4))
    spread = torch.rand(4, width, generator=g, dtype=torch.float64) * 5
    n = torch.tensor([[3.0], [1], [7], [15]], dtype=torch.float64)
    alpha, beta = 2.5, 1.5
    scores = student(z, m, spread, n, alpha, beta)
    a, b = alpha + n.numpy() / 2, beta + spread.numpy() / 2
    scale = np.sqrt(b / a * (1 + 1 / n.numpy()))
    exact = scipy.stats.t.logpdf(z.numpy()[:, None], 2 * a, m.numpy(), scale).sum(-1)
    # Left out is what no class changes: the logarithm of pi / 2 and of the like.
    difference = exact - scores.numpy()
    np.testing.assert_allclose(difference, difference[0, 0], rtol=0, atol=1e-9)


def test_gemcls_map_head_is_a_normal_density():
    g = torch.Generator().manual_seed(1)
    z, m = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (6, 3))
    spread, n = torch.rand(3, 4, generator=g, dtype=torch.float64), torch.tensor([[2.0], [4], [9]], dtype=torch.float64)
    v = (2.0 + spread / 2) / (3.0 + n / 2 - 1)
    exact = scipy.stats.norm.logpdf(z.numpy()[:, None], m.numpy(), v.sqrt().numpy()).sum(-1)
    difference = exact - gaussian(z, m, spread, n, 3.0, 2.0).numpy()
    np.testing.assert_allclose(difference, difference[0, 0], rtol=0, atol=1e-9)


def test_gemcl_by_hand():
    # Class 0 shows 0 and 2: m = 1, SS = 2, n = 2, so with alpha = 2 and beta = 3: alpha' = 3, beta' = 4, v = 2.
    # Class 1 shows 5 once: m = 5, SS = 0, alpha' = 2.5, beta' = 3, v = 2. At z = 3 they are equally far and wide.
    given = pool(torch.tensor([[0.0], [2.0], [5.0]], dtype=torch.float64), torch.tensor([0, 0, 1]))
    learner = gemcl(bare(1), "map", alpha=2.0, beta=3.0)
    scores = learner.predict(shown(learner, given, [[0, 1, 2]]), given, torch.tensor([[3.0], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(scores[:, 0] - scores[:, 1], torch.tensor([0.0, 4.0], dtype=torch.float64))


def test_gemcl_weighs_a_feature_by_how_little_it_varies_in_the_class():
    # In class 0 the first feature hardly varies, in class 1 the second; (1, 1) is as far from both means.
    x = torch.tensor([[-0.1, -2], [0.1, 2], [2 - 2, 2 - 0.1], [2 + 2, 2 + 0.1]], dtype=torch.float64)
    given = pool(x, torch.tensor([0, 0, 1, 1]))
    learner = gemcl(bare(2), alpha=1.0, beta=0.1)
    asked = torch.tensor([[0.0, 1.5], [0.5, 2.0]], dtype=torch.float64)
    assert learner.predict(shown(learner, given, [[0, 1, 2, 3]]), given, asked).argmax(-1).tolist() == [0, 1]


def test_gemcl_has_its_prior_from_the_start_unless_it_is_told_one():
    given = some(width=4)
    learned = {"prior.alpha": torch.tensor(2.0), "prior.beta": torch.tensor(5.0)}
    same = [gemcl(bare(4, 4), learned=learned), gemcl(bare(4, 4), alpha=2.0, beta=5.0)]
    one, other = (m.predict(shown(m, given, [list(range(32))]), given, given.x) for m in same)
    torch.testing.assert_close(one, other)
    told = gemcl(bare(4, 4), alpha=9.0, learned=learned)
    assert not torch.allclose(told.predict(shown(told, given, [list(range(32))]), given, given.x), one)


def test_students_score_has_the_gradient_of_the_formula():
    g = torch.Generator().manual_seed(2)
    z, m = (torch.randn(n, 4, generator=g, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    spread = (torch.rand(2, 4, generator=g, dtype=torch.float64) + 1).requires_grad_()
    n = torch.full((2, 1), 5.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z, m, spread: student(z, m, spread, n, 2.0, 1.0), (z, m, spread))


@pytest.mark.parametrize(("make", "words"), [
    (lambda net: ncm(net, "manhattan"), "distance must be one of"), (lambda net: ncm(net, shrinkage=0.0), "shrinkage"),
    (lambda net: ncm(net, shrinkage=1.1), "shrinkage"), (lambda net: gemcl(net, "mean"), "head must be one of"),
    (lambda net: gemcl(net, alpha=0.0), "alpha"), (lambda net: gemcl(net, "map", alpha=0.9), "alpha"),
    (lambda net: gemcl(net, beta=0.0), "beta")])
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(bare(2))
