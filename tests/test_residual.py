"""The residual networks: their statistics, the networks of papers that they are, and what they refuse."""

import pytest
import torch
import torchvision
from lifelong.streams import glyphs

from lifelong.networks.precision import in_bfloat16
from lifelong.networks.resnet import resnet, resnet18
from lifelong.starts.recipe import set_statistics
from lifelong.vmap import lift

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


def test_lanes_are_lifted_as_each_is_applied():
    params, x = parameters(), torch.rand(2, 6, 1, 12, 12, dtype=torch.float64)
    real = torch.tensor([[True] * 6, [True] * 5 + [False]])
    scores, moved = lift(NET.train, 2, {k: torch.stack([p, p]) for k, p in params.items()}, x, real, x[:, 0, 0, 0])
    for i in range(2):
        alone, after = NET.train(params, x[i], real[i], None)
        torch.testing.assert_close(scores[i][real[i]], alone[real[i]])
        torch.testing.assert_close({k: v[i] for k, v in moved.items()}, after)


def test_in_bfloat16_it_scores_nearly_the_same():
    params, x = {k: p.float() for k, p in parameters().items()}, torch.rand(3, 1, 12, 12)
    torch.testing.assert_close(in_bfloat16(NET).apply(params, x), NET.apply(params, x), rtol=0.05, atol=0.05)


def test_its_statistics_settle_on_a_source():
    source = glyphs.source(classes=6)
    net = resnet(source.shape, 6, (4, 6))
    params = net.init(torch.Generator().manual_seed(0))
    after = set_statistics(net, params, source.sampler(torch.Generator().manual_seed(0)), batches=2, size=32)
    assert {k for k in params if not torch.equal(params[k], after[k])} == set(net.still)


@pytest.mark.parametrize(("shape", "widths", "words"), [
    ((28,), (4, 6), "needs images"), ((1, 3, 28), (4, 6, 8), "4 pixels or more a side"),
    ((1, 28, 28), (4,), "two numbers or more"), ((1, 28, 28), (4, 0), "two numbers or more")])
def test_what_makes_no_sense_is_refused(shape, widths, words):
    with pytest.raises(ValueError, match=words):
        resnet(shape, 5, widths)


# ---- ResNet-18


def count(shape, n_classes, **options):
    net = resnet18(shape, n_classes, **options)
    return sum(p.numel() for k, p in net.init(torch.Generator().manual_seed(0)).items() if k not in net.still)


def test_it_has_as_many_parameters_as_the_networks_of_papers():
    # torchvision's on ImageNet, whose stem and pooling differ in strides alone: 11,689,512 (He et al. 2016: 11.7 million).
    assert count((3, 224, 224), 1000, width=64, pool=0, stem="large") == 11_689_512
    # Of the small stem, 3x3 in place of 7x7, on ten classes: 11,689,512 - 3 * 64 * (49 - 9) - 513 * 990.
    assert count((3, 32, 32), 10, width=64, pool=0) == 11_173_962
    # Reduced, by hand, with w = 20. Convolutions: 27 w + 9 w^2 (4 + (2 + 4 * 3) + 4 (2 + 4 * 3) + 16 (2 + 4 * 3))
    # - each group of four has one from half the width - + 1x1: w^2 (2 + 8 + 32); norms: 2 w (1 + 4 + 5 (2 + 4 + 8)).
    convolutions = 27 * 20 + 9 * 400 * (4 + 14 + 56 + 224) + 400 * (2 + 8 + 32)
    assert count((3, 32, 32), 10) == convolutions + 2 * 20 * (1 + 4 + 5 * 14) + 161 * 10
    assert count((3, 84, 84), 100) == convolutions + 2 * 20 * 75 + 641 * 100  # Linear(640, 100)


@pytest.mark.parametrize(("stem", "pool"), [("small", 4), ("large", 0)])
def test_resnet18_is_the_network_of_torchvision_with_another_stem(stem, pool):
    net = resnet18((3, 40, 32), 5, width=64, stem=stem, pool=pool)
    params = net.init(torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = torchvision.models.resnet18(num_classes=5)
    side = {"small": 3, "large": 7}[stem]
    other.conv1 = torch.nn.Conv2d(3, 64, side, 1, side // 2, bias=False)
    other.maxpool = torch.nn.Identity()
    other.avgpool = torch.nn.AvgPool2d(pool) if pool else other.avgpool
    stages = (other.layer1, other.layer2, other.layer3, other.layer4)
    own = {"conv0": (other.conv1, other.bn1)}
    for i, block in enumerate((block for stage in stages for block in stage), 1):
        own |= {f"conv{i}a": (block.conv1, block.bn1), f"conv{i}b": (block.conv2, block.bn2)}
        own |= {f"short{i}": tuple(block.downsample)} if block.downsample else {}
    for name, (conv, norm) in own.items():
        conv.weight.data = params[f"{name}.weight"]
        norm.running_mean = params[f"{name}.norm.mean"] = 0.1 * torch.rand(len(conv.weight))
        norm.weight.data = params[f"{name}.norm.weight"] = 0.5 + torch.rand(len(conv.weight))
    assert {k.removesuffix(".weight") for k in params if k.startswith(("conv", "short")) and "norm" not in k} == set(own)
    other.fc.weight.data, other.fc.bias.data = params["head.weight"], params["head.bias"]
    x = torch.rand(2, 3, 40, 32)
    torch.testing.assert_close(net.apply(params, x), other.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_resnet18_without_batch_normalisation_has_no_statistics(norm):
    net = resnet18((1, 28, 28), 5, width=2, norm=norm)
    params = net.init(torch.Generator().manual_seed(0))
    assert not net.still and net.train is None and net.fresh is None
    assert net.features(params, torch.rand(2, 1, 28, 28)).shape == (2, 16)


@pytest.mark.parametrize(("shape", "options", "words"), [
    ((28,), {}, "needs images"), ((1, 8, 28), {}, "leave a map of 1x4"), ((1, 28, 28), {"width": 0}, "width must be 1"),
    ((1, 28, 28), {"stem": "tiny"}, "stem must be one of"), ((1, 28, 28), {"norm": "layer"}, "norm must be one of"),
    ((1, 8, 8), {"norm": "instance", "pool": 0}, "shrink to one pixel")])
def test_what_resnet18_cannot_be_is_refused(shape, options, words):
    with pytest.raises(ValueError, match=words):
        resnet18(shape, 5, **options)
