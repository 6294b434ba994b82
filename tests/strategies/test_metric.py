"""ProtoNet, by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from lifelong.strategies.metric import protonet
from lifelong.streams import digits, glyphs

from lifelong.networks.conv import conv4
from lifelong.networks.mlp import mlp
from lifelong.starts.recipe import class_means, distance_scores, learn, nearest_mean

# Two classes; those of class 0 are about (1, 0), the one of class 1 is (0, 2).
SHOWN = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
UNITS = torch.tensor([0, 1, 0])
QUERY = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
SCORES = torch.tensor([[-1.0, -2.0], [-2.0, -1.0]])


def test_scores_are_minus_squared_distances_to_the_mean_of_each_class() -> None:
    centres = class_means(SHOWN, UNITS, 2)
    torch.testing.assert_close(centres, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(distance_scores(QUERY, centres), SCORES)
    net = mlp((2,), 2, ())  # its features are its input
    torch.testing.assert_close(nearest_mean(net, net.init(torch.Generator()), SHOWN, UNITS, QUERY, 2), SCORES)


def test_the_objective_of_an_episode_by_hand() -> None:
    recipe = protonet(way=2, shots=1, queries=1).recipe
    net = mlp((2,), 1, ())
    episode = {"x": torch.cat([torch.tensor([[1.0, 0.0], [0.0, 2.0]]), QUERY]), "y": torch.tensor([0, 1]),
               "query_y": torch.tensor([0, 1])}
    loss, logs = recipe.loss(net, net.init(torch.Generator()), episode)
    # Each query is by 1 nearer, in squares, to its own class: -log(1 / (1 + e^-1)).
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert float(logs["accuracy"]) == 1.0


def test_an_episode_has_shots_and_other_queries_of_each_class() -> None:
    source = glyphs.source(classes=8)
    recipe = protonet(way=5, shots=2, queries=3).recipe
    episode = recipe.draw(source.sampler(torch.Generator().manual_seed(0)))
    assert episode["x"].shape == (25, 1, 28, 28) and len(torch.unique(episode["x"], dim=0)) == 25
    rows = {tuple(x.flatten().tolist()): int(y) for x, y in zip(source.x.float().mul(1 / 255), source.y, strict=True)}
    classes = [rows[tuple(x.flatten().tolist())] for x in episode["x"]]
    shown, asked = classes[:10], classes[10:]
    assert len(set(shown)) == 5
    assert asked == [shown[2 * unit] for unit in episode["query_y"].tolist()]
    assert shown == [shown[2 * unit] for unit in episode["y"].tolist()]


def test_it_learns_and_normalises_by_the_batch_while_it_does() -> None:
    source = glyphs.source(classes=10)
    recipe = protonet(steps=12, way=8, queries=2, lr=0.003).recipe
    net = conv4((1, 28, 28), 1, 8, norm="batch", down="pool")
    params, logs = learn(recipe, net, source)
    losses = logs["loss"]
    assert float(losses[-4:].mean()) < 0.7 * float(losses[:4].mean())
    episode = recipe.draw(source.sampler(torch.Generator().manual_seed(0)))
    assert net.fresh is not None
    z = net.fresh(params, episode["x"])[0]
    scores = distance_scores(z[8:], class_means(z[:8], episode["y"], 8))
    torch.testing.assert_close(recipe.loss(net, params, episode)[0], F.cross_entropy(scores, episode["query_y"]))


def test_units_and_halving() -> None:
    recipe = protonet(halve=3, lr=0.8).recipe
    assert recipe.units(glyphs.source(classes=3)) == 1 and recipe.units(digits.rotations(domains=2)) == 10
    sizes = []
    for step in (0, 2, 3, 6):
        moved, grads = {"p": torch.zeros(1)}, {"p": torch.ones(1)}
        recipe.optimizer(step).update(moved, grads, recipe.optimizer(step).init(moved))
        sizes.append(-float(moved["p"]))  # the first step of Adam is its step size
    assert sizes == pytest.approx([0.8, 0.8, 0.4, 0.2], rel=1e-5)


def test_of_several_domains_the_output_layer_answers_by_the_nearest_mean_over_them() -> None:
    source, net = digits.rotations(domains=6), mlp((1, 8, 8), 10, (16,))
    recipe = protonet(steps=1, shots=2, queries=3).recipe
    params = net.init(torch.Generator().manual_seed(0))
    assert recipe.finish is not None
    set_ = recipe.finish(net, params, source.sampler(torch.Generator().manual_seed(1)))
    sampler = source.sampler(torch.Generator().manual_seed(1))
    tasks = torch.stack([sampler.fetch(sampler.task(9, 5))[0] for _ in range(50)])
    centres = net.features(params, tasks.flatten(0, 2)).view(50, 10, 5, 16).mean((0, 2))
    x, y = sampler.fetch(sampler.task(9, 3))
    scores, z = net.apply(set_, x.flatten(0, 1)), net.features(params, x.flatten(0, 1))
    torch.testing.assert_close(scores - z.square().sum(1, keepdim=True), distance_scores(z, centres), rtol=1e-3, atol=1e-4)
    assert float((scores.argmax(1) == y.flatten()).float().mean()) > 0.3
    assert all(torch.equal(set_[k], params[k]) for k in params if k not in net.head)
