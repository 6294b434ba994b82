"""Starts installed as the network of a stream, and the supervised start."""

import pytest
import torch
from lifelong.strategies.starts import supervised
from lifelong.streams import glyphs

from lifelong.networks.conv import anml_net
from lifelong.networks.resnet import resnet
from lifelong.starts.install import installed
from lifelong.starts.weights import Weights

SHAPE = (1, 8, 8)
MODEL = "resnet(widths=(4, 6))"


def made(**changed: object) -> Weights:
    about = {"start": "any", "model": MODEL, "shape": SHAPE, "units": 3, "domains": 1}
    return Weights(resnet(SHAPE, 3, (4, 6)).init(torch.Generator().manual_seed(0)), about | changed)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_features_of_quarter_turns_are_concatenated_each_of_length_1():
    weights, x = made(), torch.rand(2, *SHAPE)
    net = installed(weights, SHAPE, 5, "class", adapt="head", quarter_turns=4)
    z = net.features({}, x)
    alone = installed(weights, SHAPE, 5, "class", adapt="head", length=1.0)
    assert z.shape == (2, 24)
    for quarters in range(4):
        torch.testing.assert_close(z[:, 6 * quarters:6 * quarters + 6], alone.features({}, x.rot90(quarters, (-2, -1))))
    params = net.init(draw(0))
    assert params["head.weight"].shape == (5, 24)
    torch.testing.assert_close(net.apply(params, x), z @ params["head.weight"].mT + params["head.bias"])


def test_what_moves_is_all_or_all_but_the_gate_or_the_output_layer():
    shape = (1, 28, 28)
    params = anml_net(shape, 3, 4, 2).init(draw(0))
    gate = {k for k in params if k.startswith("gate")}
    head = {"head.weight", "head.bias"}
    assert gate and head < set(params) - gate
    weights = Weights(params, {"start": "any", "model": "anml_net(width=4, gate=2)", "shape": shape, "units": 3,
                               "domains": 1})
    for adapt, moves in (("all", set(params)), ("ungated", set(params) - gate), ("head", head)):
        assert set(installed(weights, shape, 5, "class", adapt=adapt).init(draw(1))) == moves


def test_the_power_of_features_keeps_their_sign_and_comes_before_their_length():
    weights, x = made(), torch.rand(2, *SHAPE)
    plain = installed(weights, SHAPE, 5, "class", adapt="head").features({}, x)
    z = installed(weights, SHAPE, 5, "class", adapt="head", power=0.5, length=3.0).features({}, x)
    torch.testing.assert_close(z, 3 * plain.sqrt() / plain.sqrt().norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("given", [{"power": 0.5, "adapt": "all"}, {"quarter_turns": 2, "adapt": "all"},
                                   {"quarter_turns": 2, "adapt": "head", "head": "kept"}])
def test_power_and_quarter_turns_are_for_features_that_stay(given):
    with pytest.raises(ValueError, match="power and quarter_turns"):
        installed(made(), SHAPE, 3, "class", **given)


def test_only_square_images_have_quarter_turns():
    with pytest.raises(ValueError, match="square"):
        installed(made(shape=(1, 8, 9)), (1, 8, 9), 3, "class", adapt="head", quarter_turns=4)


@pytest.mark.parametrize(("given", "words"), [
    ({"smoothing": 1.0}, "smoothing"), ({"cosine": -1.0}, "cosine"), ({"augment": -0.1}, "augment"),
    ({"weight_decay": -1.0}, "weight_decay"), ({"quarter_turns": 5}, "quarter_turns"), ({"power": 0.0}, "power")])
def test_what_makes_no_sense_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        supervised(**given)


def test_a_cosine_classifiers_loss_by_hand():
    # Cosines of (3, 4) to (1, 0) and (0, 2) are 0.6 and 0.8; times 10, with a tenth of the target spread over both.
    from lifelong.networks.mlp import mlp

    recipe = supervised(cosine=10.0, smoothing=0.1).recipe
    params = {"head.weight": torch.tensor([[1.0, 0], [0, 2]]), "head.bias": torch.tensor([5.0, -5])}
    loss, logs = recipe.loss(mlp((2,), 2, ()), params, {"x": torch.tensor([[3.0, 4]]), "y": torch.tensor([1])})
    odds = torch.tensor([6.0, 8.0]).log_softmax(0)
    torch.testing.assert_close(loss, -0.05 * odds[0] - 0.95 * odds[1])
    assert float(logs["accuracy"]) == 1


def test_distortion_draws_the_episodes_own_numbers():
    source = glyphs.source(classes=4)
    plain, drawn, again = (supervised(batch=5, augment=a).recipe.draw(source.sampler(draw(0))) for a in (0.0, 1.0, 1.0))
    assert torch.equal(plain["y"], drawn["y"])
    assert torch.equal(drawn["x"], again["x"])
    assert not torch.allclose(plain["x"], drawn["x"])
