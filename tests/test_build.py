"""Streams built from labelled images hold what was asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lifelong.data import build
from lifelong.data.stream import Stream
from lifelong.randomness import generator

SEEDS = [0, 1, 2, 3, 4]


def images(n_classes: int = 6, each: int = 5) -> build.Images:
    """`each` images of 1x4x4 a class, the last one of them for testing; every pixel 1 or more, never a blank's 0."""
    n = n_classes * each
    x = (1 + torch.arange(n * 16) % 255).to(torch.uint8).view(n, 1, 4, 4)
    rows = torch.arange(n)
    return build.Images(x, rows // each, rows[rows % each < each - 1], rows[rows % each == each - 1], scale=1 / 255)


MAKERS: dict[str, Any] = {
    "split": lambda seeds, **options: build.split("toy-v1", seeds, images(), tasks=2, classes_per_task=2, **options),
    "grouped": lambda seeds, **options: build.grouped("toy-v1", seeds, images(), groups=[[0, 1], [2, 3], [5, 4]],
                                                      **options),
    "permuted": lambda seeds, **options: build.permuted("toy-v1", seeds, images(), tasks=3, examples=7, **options),
    "rotated": lambda seeds, **options: build.rotated("toy-v1", seeds, images(), tasks=3, examples=7, **options),
}


def fetched(stream: Stream, seed: int, task: int, kind: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
    """What a learner sees of one task."""
    lane = stream.pool().lane({name: value[0] for name, value in stream.lanes([seed]).items()})
    rows = getattr(stream, kind)[seed, task]
    return lane.fetch(rows[rows >= 0])


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_seed_gets_the_same_stream_alone_as_among_others(maker: str, scenario: str) -> None:
    together, alone = MAKERS[maker](SEEDS, scenario=scenario), MAKERS[maker]([3], scenario=scenario)
    for name in ("train", "test", "classes", "warp", "label"):
        one, many = getattr(alone, name), getattr(together, name)
        assert (one is None and many is None) or torch.equal(one[0], many[3]), name


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("maker", MAKERS)
def test_every_scenario_fetches_units_of_its_own_task(maker: str, scenario: str) -> None:
    stream = MAKERS[maker](SEEDS, scenario=scenario)
    for task in range(stream.n_tasks):
        x, unit = fetched(stream, 1, task)
        assert x.shape[1:] == (1, 4, 4)
        assert bool(stream.classes[1, task, unit].all())
    assert stream.scenario == scenario


@pytest.mark.parametrize("maker", MAKERS)
def test_seeds_differ(maker: str) -> None:
    stream = MAKERS[maker](SEEDS)
    drawn = stream.train if maker in ("split", "grouped") else stream.warp
    assert drawn is not None and len({tuple(own.flatten().tolist()) for own in drawn}) > 1


def test_a_fixed_split_takes_the_classes_as_numbered() -> None:
    stream = build.split("toy-v1", [0], images(4, 3), tasks=2, order="fixed")
    # Classes 0..3 have examples 0-2, 3-5, 6-8, 9-11; the third of each is for testing.
    assert stream.train[0].tolist() == [[0, 1, 3, 4], [6, 7, 9, 10]]
    assert stream.test[0].tolist() == [[2, 5], [8, 11]]
    assert stream.classes[0].tolist() == [[True, True, False, False], [False, False, True, True]]
    assert stream.label is None


def test_a_split_of_some_classes_has_units_for_those_only() -> None:
    stream = MAKERS["split"](SEEDS, scenario="class")
    assert stream.n_classes == 4
    for seed in range(len(SEEDS)):
        assert [sorted(set(fetched(stream, seed, t)[1].tolist())) for t in (0, 1)] == [[0, 1], [2, 3]]


def test_in_the_domain_scenario_a_unit_is_the_place_within_the_task() -> None:
    stream = build.split("toy-v1", [0], images(4, 3), tasks=2, order="fixed", scenario="domain")
    assert stream.n_classes == 2
    assert bool(stream.classes.all())
    assert fetched(stream, 0, 1)[1].tolist() == [0, 0, 1, 1]


def test_unequal_groups_are_padded_at_the_end() -> None:
    stream = build.grouped("toy-v1", [0], images(4, 3), groups=[[2], [0, 3, 1]], order="fixed")
    assert stream.train[0].tolist() == [[6, 7, -1, -1, -1, -1], [0, 1, 3, 4, 9, 10]]
    assert fetched(stream, 0, 0)[1].tolist() == [0, 0]
    # Units in the order of the group: class 0 -> 1, class 3 -> 2, class 1 -> 3.
    assert fetched(stream, 0, 1)[1].tolist() == [1, 1, 3, 3, 2, 2]


def test_each_seed_may_have_its_own_test_examples() -> None:
    data = images(2, 3)
    own = replace(data, train=torch.tensor([[0, 1, 3, 4], [1, 2, 4, 5]]), test=torch.tensor([[2, 5], [0, 3]]))
    stream = build.split("toy-v1", [0, 1], own, tasks=1, order="fixed")
    assert stream.train[:, 0].tolist() == own.train.tolist()
    assert stream.test[:, 0].tolist() == own.test.tolist()


def test_a_permutation_moves_every_pixel_to_one_place_in_train_and_test_alike() -> None:
    data = images()
    stream = build.permuted("toy-v1", SEEDS, data, tasks=2)
    assert stream.warp is not None
    assert stream.warp.sort(-1).values.eq(torch.arange(16)).all()
    for kind, examples in (("train", data.train), ("test", data.test)):
        expected = data.x[examples].flatten(1)[:, stream.warp[2, 1]] / 255
        torch.testing.assert_close(fetched(stream, 2, 1, kind)[0].flatten(1), expected)


def test_the_first_permutation_may_be_the_identity() -> None:
    stream = build.permuted("toy-v1", SEEDS, images(), tasks=2, identity_first=True)
    assert stream.warp is not None and bool((stream.warp[:, 0] == torch.arange(16)).all())


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (5, 9), (3, 7, 6)])
def test_rotating_by_table_equals_rotating_with_pil(shape: tuple[int, ...]) -> None:
    angles = torch.cat([torch.arange(0, 361, 15), 400 * torch.rand(30, generator=generator(0)) - 20])
    planes = np.random.default_rng(0).integers(1, 256, (shape if len(shape) == 3 else (1, *shape)), dtype=np.uint8)
    table = build.rotation(angles, shape)
    flat = np.append(planes.flatten(), np.uint8(0))
    for angle, pixels in zip(angles.tolist(), table.numpy(), strict=True):
        expected = np.stack([np.asarray(Image.fromarray(plane).rotate(angle)) for plane in planes])
        np.testing.assert_array_equal(flat[pixels].reshape(expected.shape), expected, err_msg=f"at {angle} degrees")


def test_angles_in_bins_grow_from_task_to_task_and_any_angles_do_not() -> None:
    # One bright pixel at the right edge of the middle row; its angle on the circle is the rotation's.
    x = torch.zeros(4, 1, 41, 41, dtype=torch.uint8)
    x[:, 0, 20, 30:] = 255
    data = build.Images(x, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]), torch.tensor([2, 3]))

    def angle(stream: Stream, seed: int, task: int) -> float:
        down, right = fetched(stream, seed, task)[0][0, 0].nonzero().double().mean(0).tolist()
        return float(np.degrees(np.arctan2(20 - down, right - 20)) % 360)

    bins = build.rotated("toy-v1", SEEDS, data, tasks=4)
    free = build.rotated("toy-v1", SEEDS, data, tasks=4, angles="any")
    for seed in range(len(SEEDS)):
        for task in range(4):
            assert 45 * task - 3 <= angle(bins, seed, task) <= 45 * (task + 1) + 3
    drawn = [[angle(free, seed, task) for task in range(4)] for seed in range(len(SEEDS))]
    assert all(0 <= a <= 183 or a > 357 for own in drawn for a in own)
    assert any(own != sorted(own) for own in drawn)


def test_every_task_draws_its_own_examples_without_repetition() -> None:
    rows = MAKERS["permuted"](SEEDS).train
    assert rows.shape == (5, 3, 7)
    sets = [[frozenset((own % 30).tolist()) for own in tasks] for tasks in rows]
    assert all(len(own) == 7 for tasks in sets for own in tasks)
    assert len({own for tasks in sets for own in tasks}) > 10


def test_warped_tasks_have_units_of_their_own_outside_the_domain_scenario() -> None:
    stream = MAKERS["rotated"]([0], scenario="task")
    assert stream.n_classes == 18
    assert stream.classes[0, 1].nonzero().flatten().tolist() == [6, 7, 8, 9, 10, 11]


def test_what_else_is_given_reaches_the_stream() -> None:
    stream = MAKERS["split"]([0], boundaries=False, defaults={"epochs": 3}, options={"tasks": 2})
    assert (stream.boundaries, stream.defaults, stream.options, stream.scale) == (False, {"epochs": 3}, {"tasks": 2},
                                                                                  1 / 255)


@pytest.mark.parametrize(("wrong", "sentence"), [
    (lambda: build.split("toy-v1", [0], images(), tasks=4, classes_per_task=2),
     "4 tasks of 2 classes need 8 classes, but there are 6; use at most 3 tasks of 2"),
    (lambda: build.split("toy-v1", [0], images(), tasks=4), "6 classes do not divide into 4 tasks"),
    (lambda: build.split("toy-v1", [0], images(), tasks=7), "6 classes do not divide into 7 tasks"),
    (lambda: build.split("toy-v1", [0], images(), tasks=0), "tasks must be a whole number of 1 or more, got 0"),
    (lambda: build.split("toy-v1", [0], images(), tasks=2.5), "whole number of 1 or more, got 2.5"),  # type: ignore[arg-type]
    (lambda: build.split("toy-v1", [], images(), tasks=2), "needs at least one seed"),
    (lambda: build.split("toy-v1", [0], images(), tasks=2, scenario="open"), "scenario must be one of 'task', 'domain', 'class'; got 'open'"),
    (lambda: build.split("toy-v1", [0], images(), tasks=2, order="sorted"), "order must be one of 'random', 'fixed'; got 'sorted'"),
    (lambda: build.split("toy-v1", [0], images(), tasks=6, scenario="task"), "needs 2 or more classes in every task"),
    (lambda: build.grouped("toy-v1", [0], images(), groups=[[0, 1], [2, 3, 4]], scenario="domain"),
     "tasks of 2 and of 3 classes; use the scenario 'class' or 'task'"),
    (lambda: build.grouped("toy-v1", [0], images(), groups=[[0, 1], [1, 2]]), "each class from 0 to 5 at most once"),
    (lambda: build.grouped("toy-v1", [0], images(), groups=[[0, 6]]), "each class from 0 to 5 at most once"),
    (lambda: build.permuted("toy-v1", [0], images(), tasks=2, examples=25), "examples is 25, but there are"),
    (lambda: build.rotated("toy-v1", [0], images(), tasks=2, examples=0), "examples must be a whole number"),
    (lambda: build.rotated("toy-v1", [0], images(), tasks=2, angles="all"), "angles must be one of 'bins', 'any'; got 'all'"),
])
def test_a_request_that_cannot_be_met_is_refused_in_a_sentence(wrong: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        wrong()
    assert str(caught.value).startswith("toy-v1: ")


def test_stretches_may_have_output_units_to_spare_and_only_these():
    stream = build.stretches("toy-v1", SEEDS, images(), lengths=(1, 3), units=5)
    assert (stream.n_classes, stream.spare) == (5, 2)
    assert stream.classes.any(1)[:, :3].all() and not stream.classes[..., 3:].any()
    whole = stream.classes.clone()
    with pytest.raises(ValueError, match="an output unit belongs to no task"):
        replace(stream, spare=1)
    whole[:, 0, 4] = True
    with pytest.raises(ValueError, match="a spare output unit belongs to a task"):
        replace(stream, classes=whole)
    assert build.stretches("toy-v1", SEEDS, images(), lengths=(1, 3)).n_classes == 3


def test_stretches_are_drawn_among_what_is_given_and_by_the_salt():
    one = build.stretches("toy-v1", SEEDS, images(), lengths=(2, 3), among=[1, 3, 5])
    rows = one.train.flatten(1)
    assert all({*one.y[own[own >= 0]].tolist()} == {1, 3, 5} for own in rows)
    other = build.stretches("toy-v1", SEEDS, images(), lengths=(2, 3), among=[1, 3, 5], salt="search")
    assert not torch.equal(one.train, other.train)
