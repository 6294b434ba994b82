"""The residual network: its statistics, and what it refuses."""

import pytest
import torch

from lifelong.residual import resnet
from lifelong.start import settled
from streams import glyphs

NET = resnet((1, 12, 12), 5, (4, 6, 8))


def parameters() -> dict[str, torch.Tensor]:
    return {k: p.double() for k, p in NET.init(torch.Generator().manual_seed(0)).items()}


def test_features_are_of_the_last_width_and_scores_linear_in_them():
    params, x = parameters(), torch.rand(3, 1, 12, 12, dtype=torch.float64)
    z = NET.features(params, x)
    assert z.shape == (3, 8)
    torch.testing.assert_close(NET.apply(params, x), z @ params["head.weight"].mT + params["head.bias"])


def test_an_examples_scores_do_not_depend_on_its_batch_unless_they_are_fresh():
    params, x = parameters(), torch.rand(6, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(NET.features(params, x)[:2], NET.features(params, x[:2]))
    assert not torch.allclose(NET.fresh(params, x)[0][:2], NET.fresh(params, x[:2])[0])


def test_with_the_statistics_of_a_batch_its_features_are_the_fresh_ones():
    params, x = parameters(), torch.rand(6, 1, 12, 12, dtype=torch.float64)
    z, statistics = NET.fresh(params, x)
    assert set(statistics) == set(NET.still)
    torch.testing.assert_close(NET.features(params | statistics, x), z)


def test_paper_goes_on_as_paper():
    # Of a blank image the first layer shows the same everywhere, at the edge as well, whatever its shade.
    net = resnet((1, 16, 16), 5, (4, 6))
    params = net.init(torch.Generator().manual_seed(0))
    params["conv1a.weight"][:, :, :] = 0
    params["conv1b.weight"][:, :, :] = 0
    blank, larger = net.features(params, torch.ones(1, 1, 16, 16)), net.features(params, torch.ones(1, 1, 32, 32))
    torch.testing.assert_close(blank, larger)
    assert not torch.allclose(blank, net.features(params, torch.zeros(1, 1, 16, 16)))


def test_its_statistics_settle_on_a_source():
    source = glyphs.source(classes=6)
    net = resnet(source.shape, 6, (4, 6))
    params = net.init(torch.Generator().manual_seed(0))
    after = settled(net, params, source.sampler(torch.Generator().manual_seed(0)), batches=2, size=32)
    assert {k for k in params if not torch.equal(params[k], after[k])} == set(net.still)


@pytest.mark.parametrize(("shape", "widths", "words"), [
    ((28,), (4, 6), "needs images"), ((1, 3, 28), (4, 6, 8), "4 pixels or more a side"),
    ((1, 28, 28), (4,), "two numbers or more"), ((1, 28, 28), (4, 0), "two numbers or more")])
def test_what_makes_no_sense_is_refused(shape, widths, words):
    with pytest.raises(ValueError, match=words):
        resnet(shape, 5, widths)
