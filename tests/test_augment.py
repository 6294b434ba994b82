"""Augmentation: crops, flips and distortions worked by hand, by the step's own numbers, in training alone; channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import Command, refused
from lifelong.strategies.replay import er
from torch import Tensor

from lifelong import run as lifelong_run
from lifelong import store
from lifelong.data.augment import augmentation, crop, distort, flip, written
from lifelong.data.stream import Stream
from lifelong.experiments.contract import BUDGET, tiny
from lifelong.experiments.prepare import make_stream, prepare
from lifelong.learning.composition import gradient_learner
from lifelong.learning.engine import Measured, Rhythm, train
from lifelong.learning.lanes import Lanes
from lifelong.learning.optim import sgd
from lifelong.learning.parts import Part
from lifelong.learning.schedule import batches, plan
from lifelong.networks.conv import conv4
from lifelong.spec.run import Options
from lifelong.vmap import tree

SHAPE = (2, 4, 4)
X = torch.randint(1, 256, (48, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NET = conv4(SHAPE, 4, 3)


def stream(seeds: int = 2, augment: str = "crop(padding=1) + flip", **fields: Any) -> Stream:
    y = torch.arange(4).repeat_interleave(12)
    train = torch.stack([torch.cat([torch.arange(12 * c, 12 * c + 8) for c in (2 * t, 2 * t + 1)]) for t in range(2)])
    test = torch.stack([torch.cat([torch.arange(12 * c + 8, 12 * c + 12) for c in (2 * t, 2 * t + 1)])
                        for t in range(2)])
    classes = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 1)
    return Stream("small-v1", X, y, *(t.expand(seeds, *t.shape) for t in (train, test, classes)), SHAPE, scale=1 / 255,
                  augment=augment, **fields)


def lanes(at: list[int], parts: dict[str, Part], stacked: bool = True, **fields: Any) -> Lanes:
    learner = gradient_learner(NET, sgd(lr=0.1), parts)
    return Lanes(stream(**fields), [0, 1], at, lambda hyper: learner, dtype=torch.float64, stacked=stacked)


def seen(of: str = "batch") -> Part:
    """Keeps what it saw at the latest step: of the batch, or of what it rehearsed, which are the rows 5, 5 and 29."""
    empty = {"x": torch.zeros(5, *SHAPE, dtype=torch.float64), "rows": torch.zeros(5, dtype=torch.int64)}
    if of == "batch":
        return Part(init=lambda view: dict(empty), step=lambda view: {"x": view.batch.x, "rows": view.batch.rows})
    kept = []
    part = Part(recall=lambda view: torch.tensor([5, 5, 29]),
                loss=lambda view: kept.append(view.recalled.x) or 0 * view.recalled.scores.sum())
    part.__dict__["kept"] = kept
    return part


def first(stack: Lanes, steps: int = 1) -> Any:
    state = stack.init()
    for k, batch in batches(stack, plan(stack.stream, [0, 1], 0, "task", BUDGET), 0, 0):
        if k < steps:
            state, _ = stack.observe(state, batch)
    return state


# ---- worked by hand


def test_a_crop_is_a_window_of_the_image_with_blank_pixels_around_it():
    x = torch.tensor([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]], dtype=torch.uint8)
    for u, first_channel in (((0.0, 0.0), [[0, 0], [0, 1]]), ((0.34, 0.66), [[1, 2], [3, 4]]),
                             ((0.99, 0.99), [[4, 0], [0, 0]]), ((0.5, 0.0), [[0, 1], [0, 3]]),
                             ((0.0, 0.5), [[0, 0], [1, 2]])):
        out = crop(1).apply(x, torch.tensor([u], dtype=torch.float64))
        assert out[0, 0].tolist() == first_channel and out.dtype == torch.uint8
        assert out[0, 1].tolist() == [[v and v + 4 for v in line] for line in first_channel]


def test_every_window_is_that_of_padding_and_cutting():
    x = torch.randint(1, 256, (81, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    places = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    out = crop(4).apply(x, (places + 0.5) / 9)
    for i, (down, right) in enumerate(places.tolist()):
        assert torch.equal(out[i], F.pad(x[i], (4, 4, 4, 4))[:, down:down + 5, right:right + 7])


def test_half_of_the_images_are_flipped():
    x = X[:2]
    out = flip().apply(x, torch.tensor([[0.49], [0.5]]))
    assert torch.equal(out[0], x[0].flip(-1)) and torch.equal(out[1], x[1])


def numbers(n: int, draws: int, seed: int = 0) -> Tensor:
    return torch.rand(n, draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_distortion_of_no_strength_changes_nothing():
    x = torch.rand(3, 1, 9, 9)
    torch.testing.assert_close(distort(0.0).apply(x, numbers(3, 6)), x)


def test_numbers_in_the_middle_of_their_range_distort_nothing():
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(distort(1.0, 0.3).apply(x, torch.full((2, 56), 0.5)), x)


def test_equal_numbers_distort_equally_and_every_image_has_its_own():
    x, elastic = torch.rand(1, 1, 9, 9).expand(3, -1, -1, -1), distort(1.0, 0.1)
    one = elastic.apply(x, numbers(3, elastic.draws))
    assert torch.equal(one, elastic.apply(x, numbers(3, elastic.draws)))
    assert not torch.allclose(one[0], one[1])
    assert not torch.allclose(one, elastic.apply(x, numbers(3, elastic.draws, 1)))


def test_pixels_from_outside_a_distorted_image_repeat_its_edge():
    x = torch.ones(50, 1, 9, 9)
    x[:, :, 4, 4] = 0
    out = distort().apply(x, numbers(50, 6))
    assert (out[:, :, 0] > 0.999).all()  # the 1 of the edge, not 0, though images are shifted and shrunk
    assert (out.flatten(1).min(1).values < 0.9).all()


def test_the_largest_shift_is_8_percent_of_the_side():
    # A dot in the middle of 101 pixels; all numbers but that of the shift to the right are in the middle.
    x = torch.zeros(2, 1, 101, 101)
    x[:, :, 49:52, 49:52] = 1
    u = torch.full((2, 6), 0.5, dtype=torch.float64)
    u[:, 4] = torch.tensor([0.0, 1.0])
    out = distort().apply(x, u)
    place = (out.sum((1, 2)) * torch.arange(101)).sum(-1) / out.sum((1, 2, 3)) - 50
    torch.testing.assert_close(place, torch.tensor([8.08, -8.08]), rtol=0, atol=0.01)


def test_distorted_integers_are_the_rounded_distortion_of_their_values():
    both, u = distort(1.0, 0.2), numbers(4, 56)
    out = both.apply(X[:4], u)
    assert out.dtype == torch.uint8
    torch.testing.assert_close(out.float(), both.apply(X[:4].float(), u).round())


def test_a_lifted_distortion_is_that_of_each_lane_alone():
    both, u, x = distort(1.0, 0.2), numbers(12, 56).view(3, 4, 56), X[:12].view(3, 4, *SHAPE)
    lifted = torch.func.vmap(both.apply)(x, u)
    assert torch.equal(lifted, torch.stack([both.apply(*one) for one in zip(x, u)]))


def test_augmentations_are_applied_one_after_the_other_each_with_its_own_numbers():
    both = augmentation("crop(padding=1) + flip")
    assert both is not None and both.draws == 3
    u = torch.rand(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(both.apply(X[:6], u), flip().apply(crop(1).apply(X[:6], u[:, :2]), u[:, 2:]))


def test_lanes_that_are_lifted_are_augmented_as_alone():
    both = augmentation("crop(padding=2) + flip")
    assert both is not None
    u = torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = X[:12].view(3, 4, *SHAPE)
    assert torch.equal(torch.func.vmap(both.apply)(x, u), torch.stack([both.apply(*one) for one in zip(x, u)]))


# ---- in a run


def possible(x: Tensor, row: int) -> bool:
    """Whether `x` is an augmentation of the example `row`."""
    padded = F.pad(X[row].double() / 255, (1, 1, 1, 1))
    windows = [padded[:, i:i + 4, j:j + 4] for i in range(3) for j in range(3)]
    return any(torch.allclose(x, way) for window in windows for way in (window, window.flip(-1)))


def test_every_example_of_a_batch_has_numbers_of_its_own_and_so_has_every_seed():
    state = first(lanes([0, 1], {"seen": seen()}))["parts"]["seen"]
    assert all(possible(x, int(row)) for x, row in zip(state["x"].flatten(0, 1), state["rows"].flatten()))
    changed = [not torch.allclose(x, X[row].double() / 255) for x, row in zip(state["x"].flatten(0, 1),
                                                                            state["rows"].flatten())]
    assert 5 < sum(changed) <= 10  # of ten images each stays as it is with a chance of 1 / 18
    again = first(lanes([1], {"seen": seen()}, stacked=False))["parts"]["seen"]
    assert torch.equal(again["x"], state["x"][1])  # a seed in a stack is its run alone


def test_a_rehearsed_row_gets_a_draw_of_its_own_and_leaves_the_batchs_alone():
    part = seen("rehearsed")
    both = first(lanes([0], {"seen": seen(), "again": part}, stacked=False))["parts"]["seen"]
    alone = first(lanes([0], {"seen": seen()}, stacked=False))["parts"]["seen"]
    assert torch.equal(both["x"], alone["x"])
    x = part.__dict__["kept"][-1]
    assert all(possible(one, row) for one, row in zip(x, (5, 5, 29))) and not torch.equal(x[0], x[1])


def test_what_is_remembered_does_not_depend_on_augmentation_and_testing_is_without():
    remembered = [first(lanes([0, 1], {"er": er(capacity=4)}, augment=how), 3)["parts"]["er"]["rows"]
                  for how in ("none", "crop + flip")]
    assert torch.equal(*remembered)
    stack, row = lanes([0, 1], {}), torch.tensor([[9], [9]])
    assert torch.equal(stack.fetch(row)[0][0, 0], X[9].double() * (1 / 255))
    assert torch.equal(stack.examined(row, 1, 2)[0][0, 0], X[9].double() * (1 / 255))


def test_an_interrupted_run_goes_on_to_the_same_bits():
    kept: list[dict[str, Any]] = []

    def go(resume: dict[str, Any] | None = None, save: Any = None) -> Measured:
        return train(lanes([0, 1], {"er": er(capacity=4)}), BUDGET, Rhythm(save_every=0.0, save=save), resume)

    whole = go(save=lambda c: kept.append(tree(lambda v: v.clone() if isinstance(v, Tensor) else v, c)))
    again = go(kept[1])
    assert torch.equal(again.loss, whole.loss) and torch.equal(again.accuracy, whole.accuracy)
    plain = train(lanes([0, 1], {"er": er(capacity=4)}, augment="none"), BUDGET)
    assert not torch.equal(plain.loss, whole.loss)


# ---- as it is asked for


def digest(own: str, asked: str | None) -> str:
    return store.digest(prepare(stream(augment=own), ["er"], Options(seeds=2, augment=asked, model="mlp")).specs[0].to_json())


def test_a_run_without_augmentation_is_the_run_that_it_was():
    spec = prepare(stream(augment="none"), ["er"], Options(seeds=2)).specs[0].to_json()
    assert "augment" not in spec and digest("none", "none") == digest("none", None) == store.digest(spec)
    assert digest("crop + flip", None) == digest("none", None)  # a stream's own is part of its name
    assert digest("crop + flip", "crop(padding=4)+flip") == digest("crop + flip", None)
    assert digest("none", "flip") not in (digest("none", None), digest("none", "crop"))
    assert digest("flip", "none") != digest("none", "none")
    assert written("crop( padding=4 ) + flip()") == "crop + flip"


@pytest.mark.parametrize(("strategy", "asked", "words"), [
    ("ncm", "flip", "use augment='none'"), ("mer", "flip", "fetches its examples itself"),
    ("er", "crop(padding=0)", "padding must be 1 or more"), ("er", "distort(elastic=-1)", "elastic must be 0 or more"),
    ("er", "crop(padding=[1,2])", "takes one value"),
    ("er", "crop(padding=1, flip)", "cannot read"), ("er", "sgd", "no augmentation called 'sgd'; it is one of the opt"),
    ("er", "flop", "did you mean flip")])
def test_what_is_asked_wrongly_is_told_in_one_sentence(strategy: str, asked: str, words: str, lifelong: Command):
    with pytest.raises((ValueError, LookupError), match=words.replace("(", r"\(")):
        prepare(stream(), [strategy], Options(seeds=2, augment=asked))


def test_the_command_line_takes_it_and_refuses_it_for_what_is_no_image(lifelong: Command):
    refused(lifelong("run", "split-glyphs(tasks=2)", "er", "--augment", "crops"), "did you mean crop")
    run = lifelong_run(stream(), "er", steps=1, augment="crop(padding=2)")
    assert run.spec["augment"] == "crop(padding=2)"
    with pytest.raises(ValueError, match="is for images"):
        prepare(tiny([0]), ["er"], Options(seeds=1, augment="flip"))


# ---- channels


def test_channels_are_normalised_as_torchvision_does_and_a_crops_edge_is_black():
    mean, std = (0.5, 0.3), (0.25, 0.2)
    made = stream(1, "none", mean=mean, std=std)
    other = torchvision.transforms.Normalize(mean, std)(X.double() / 255)
    rows = torch.tensor([3, 40])
    for dtype in (torch.float64, torch.float32):
        x = made.pool(dtype=dtype).fetch(rows)[0]
        assert x.dtype == dtype
        torch.testing.assert_close(x, other[rows].to(dtype))
    real = replace(made, x=X.float() / 255)
    torch.testing.assert_close(real.pool().fetch(rows)[0], other[rows].float())
    torch.testing.assert_close(real.x, X.float() / 255)  # it was not written into
    pool = replace(made.pool(), augment=crop(4))
    shifted = pool.real(crop(4).apply(X[:1], torch.zeros(1, 2)))
    torch.testing.assert_close(shifted[0, :, 0, 0], torch.tensor([-0.5 / 0.25, -0.3 / 0.2]))


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_augmented_images_stay_images_where_only_the_output_layer_moves(augment: str):
    made = replace(make_stream("split-glyphs(tasks=2)", Options(seeds=1)), augment=augment)
    asked = prepare(made, ["supervised(steps=1, adapt='head')"], Options(seeds=1))
    asked.learners.trial = True  # with the start as it is before it is learned
    learned_on, _ = asked.learners.installed(asked.specs[0])
    assert (len(learned_on.shape) == 3) is (augment == "flip")


@pytest.mark.parametrize("fields", [{"mean": (0.5, 0.3)}, {"mean": (0.5,), "std": (0.2,)},
                                    {"mean": (0.5, 0.3), "std": (0.2, 0.0)}])
def test_a_mean_and_a_std_for_each_channel_or_neither(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"mean and std"):
        stream(**fields)
