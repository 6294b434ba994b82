"""The start for GeMCL: its scores, its prior, and that it learns."""

import pytest
import torch
from lifelong.strategies.gemcl import _scores, gemcl_features
from lifelong.strategies.prototypes import gemcl
from lifelong.streams import glyphs

from lifelong.data.pool import Pool
from lifelong.experiments.prepare import prepare
from lifelong.learning.gaussians import fitted
from lifelong.learning.learner import Batch
from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.spec.run import Options
from lifelong.starts.recipe import learn
from lifelong.starts.weights import Weights, save


@pytest.mark.parametrize("head", ["predictive", "map"])
def test_it_learns_on_the_scores_that_the_learner_gives(head):
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(12, 4, generator=g, dtype=torch.float64), torch.arange(12) % 3
    asked = torch.randn(5, 4, generator=g, dtype=torch.float64)
    learner = gemcl(mlp((4,), 3, ()), head, alpha=3.0, beta=2.0)
    pool = Pool(z, y, (4,), torch.ones(1, 3, dtype=torch.bool), dtype=torch.float64)
    rows = torch.arange(12)
    state, _ = learner.observe(learner.init(0, pool), pool, Batch(rows, rows / 12, {}, torch.tensor(0)))
    torch.testing.assert_close(_scores(asked, z, y, 3, head, 3.0, 2.0), learner.predict(state, pool, asked))


def sums(alpha: float, beta: float, count: int = 40_000, n: int = 20) -> torch.Tensor:
    """Sums of squares of n numbers about their mean under inverse-gamma variances."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        precision = torch.distributions.Gamma(alpha, beta).sample((count,)).double()
        z = torch.randn(count, n, dtype=torch.float64) / precision.sqrt().unsqueeze(-1)
    return (z - z.mean(1, keepdim=True)).square().sum(1)


def test_the_prior_that_made_the_variances_is_found_again():
    alpha, beta = fitted(sums(3.0, 2.0), 20)
    assert float(alpha) == pytest.approx(3.0, rel=0.03)
    assert float(beta) == pytest.approx(2.0, rel=0.03)


def test_features_of_other_units_have_the_same_alpha_and_a_beta_in_those():
    one, other = fitted(sums(3.0, 2.0, 5000), 20), fitted(sums(3.0, 2.0, 5000) * 1e-6, 20)
    assert float(other[0]) == pytest.approx(float(one[0]), rel=1e-6)
    assert float(other[1]) == pytest.approx(float(one[1]) * 1e-6, rel=1e-6)


def test_features_that_are_off_do_not_count():
    s = sums(3.0, 2.0, 5000)
    off = torch.stack([s, torch.zeros_like(s)], 1)
    assert [float(a) for a in fitted(off, 20)] == pytest.approx([float(a) for a in fitted(s, 20)], rel=1e-6)


def test_it_learns_and_its_file_has_the_prior_of_its_features():
    source = glyphs.source(classes=12)
    recipe = gemcl_features(steps=30, way=5, shots=3, queries=3, lr=0.01).recipe
    net = conv4(source.shape, 1, width=8, norm="batch")
    params, logs = learn(recipe, net, source)
    losses = logs["loss"]
    assert losses[-5:].mean() < 0.8 * losses[:5].mean()
    sampler = source.sampler(torch.Generator().manual_seed(0))
    z = torch.stack([net.features(params, sampler.fetch(rows)[0]).double() for rows in source.rows[0]])
    prior = fitted((z - z.mean(1, keepdim=True)).square().sum(1), 20)
    assert [float(params[f"prior.{k}"]) for k in ("alpha", "beta")] == pytest.approx([float(p) for p in prior], rel=1e-3)
    x, _ = sampler.fetch(sampler.classes(5, 6))
    query, asked = x[:, 3:].flatten(0, 1), torch.arange(5).repeat_interleave(3)
    scores = recipe.answer(net, params, x[:, :3].flatten(0, 1), torch.arange(5).repeat_interleave(3), query, 5)
    assert (scores.argmax(-1) == asked).double().mean() > 0.6


@pytest.mark.parametrize(("given", "words"), [
    ({"way": 1}, "way"), ({"shots": 0}, "shots"), ({"by": "mean"}, "by must be one of"), ({"lr": 0}, "lr")])
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        gemcl_features(**given)


@pytest.mark.parametrize(("use", "alpha"), [("", 3.0), (", length=2", None)])
def test_the_learner_has_the_prior_of_the_start_where_features_are_as_they_are(use, alpha, tmp_path):
    source = glyphs.source(classes=3)
    file, net = tmp_path / "start.safetensors", conv4(source.shape, 1, width=2)
    prior = {"prior.alpha": torch.tensor(3.0), "prior.beta": torch.tensor(0.5)}
    about = {"start": "gemcl_features", "model": "conv4(width=2)", "shape": list(source.shape), "units": 1,
             "domains": 1, "content": [], "source": "glyphs"}
    save(file, Weights(net.init(torch.Generator().manual_seed(0)) | prior, about))
    experiment = prepare("split-glyphs(tasks=2)", [f"gemcl_features(file='{file}'{use}) + gemcl"], Options(seeds=1))
    stream, _ = experiment.learners.installed(experiment.specs[0])
    learned = experiment.learners.context(experiment.specs[0])["learned"]
    assert learned.get("prior.alpha") == alpha
    used = torch.cat([stream.train.flatten(), stream.test.flatten()])
    assert stream.x[used[used >= 0]].abs().sum(1).min() > 0
