"""A stream refuses what would make its numbers wrong, and a pool gives every lane the examples of its rows."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong.data.pool import Pool
from lifelong.data.stream import SCENARIOS, Stream

# Eight examples, two of each of four classes; the first of each class is trained on, the second is tested on.
X = torch.arange(8.0).unsqueeze(1)
Y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
UNITS = torch.tensor([[True, True, False, False], [False, False, True, True]])


def stream(**changes: Any) -> Stream:
    """Two tasks of two classes for two seeds: the first seed learns examples 0 and 2, then 4 and 6; the second 2 and 0."""
    given: dict[str, Any] = {
        "name": "eight-v1", "x": X, "y": Y, "train": torch.tensor([[[0, 2], [4, 6]], [[2, 0], [6, 4]]]),
        "test": torch.tensor([[[1, 3], [5, 7]], [[1, 3], [5, 7]]]), "classes": torch.stack([UNITS, UNITS]), "shape": (1,)}
    return Stream(**given | changes)


def seen_twice(**changes: Any) -> Stream:
    """Four examples of two classes, learned by one seed as they are and then as their second variant.

    Rows 0 to 3 are the examples with their two pixels as stored, rows 4 to 7 the same with the pixels exchanged.
    """
    given: dict[str, Any] = {
        "name": "twice-v1", "x": torch.tensor([[10, 11, 0], [20, 21, 0], [30, 31, 0], [40, 41, 0]]),
        "y": torch.tensor([0, 0, 1, 1]), "train": torch.tensor([[[0, 2], [4, 6]]]),
        "test": torch.tensor([[[1, 3], [5, 7]]]), "classes": torch.ones(1, 2, 2, dtype=torch.bool), "shape": (2,),
        "scenario": "domain", "warp": torch.tensor([[[0, 1], [1, 0]]])}
    return Stream(**given | changes)


def rows(first: list[list[int]], second: list[list[int]] | None = None) -> Tensor:
    """[2, T, n] rows of both seeds; the second's are the first's where none are given."""
    return torch.tensor([first, second or first])


def refused(sentence: str, make: Any = stream, **changes: Any) -> None:
    name = make().name
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}: {sentence}')}$"):
        make(**changes)


# ---- what is trained on is not tested on


def test_an_example_that_is_trained_and_tested_on_is_named_with_its_seed():
    refused("example 3 is both trained and tested on (seed 1)", train=rows([[0, 2], [4, 6]], [[2, 3], [6, 4]]))


def test_an_example_of_another_task_is_trained_and_tested_on_as_well():
    everything = torch.ones(2, 2, 4, dtype=torch.bool)
    refused("example 4 is both trained and tested on (seed 0)", test=rows([[1, 4], [5, 7]]), classes=everything)


def test_an_example_seen_in_training_in_another_variant_is_trained_and_tested_on():
    # Row 4 is example 0 with its pixels exchanged, and example 0 was learned in the first task.
    refused("example 0 is both trained and tested on (seed 0)", seen_twice, train=torch.tensor([[[0, 2], [6, -1]]]),
            test=torch.tensor([[[1, 3], [4, 5]]]))


def test_a_seed_may_test_what_another_seed_trains_on():
    own = stream(train=rows([[0, 2], [4, 6]], [[1, 3], [5, 7]]), test=rows([[1, 3], [5, 7]], [[0, 2], [4, 6]]))
    assert own.train[1].tolist() == own.test[0].tolist()


# ---- rows


def test_rows_may_be_padded_at_the_end_and_nowhere_else():
    padded = rows([[0, -1], [4, 6]])
    assert stream(train=padded, test=rows([[1, -1], [5, 7]])).train.tolist() == padded.tolist()
    refused("train rows must be padded at the end", train=rows([[-1, 0], [4, 6]]))
    refused("train rows must be padded at the end", train=rows([[0, -1, 2], [4, 6, -1]]))
    refused("test rows must be padded at the end", test=rows([[1, 3], [5, 7]], [[1, 3], [-1, 7]]))


def test_a_task_without_an_example_is_named():
    refused("task 1 has no train example", train=rows([[0, 2], [-1, -1]]))
    refused("task 0 has no test example", test=rows([[-1, -1], [5, 7]]))
    refused("task 0 has no test example", test=rows([[1, 3], [5, 7]], [[-1, -1], [5, 7]]))  # of one seed alone


@pytest.mark.parametrize(("wrong", "got"), [(-2, "-2 to 6"), (8, "0 to 8")])
def test_train_rows_lie_within_the_pool(wrong, got):
    refused(f"train rows must lie between -1 and 7, got {got}", train=rows([[0, 2], [4, 6]], [[wrong, 0], [4, 6]]))


@pytest.mark.parametrize(("wrong", "got"), [(-2, "-2 to 7"), (8, "1 to 8")])
def test_test_rows_lie_within_the_pool(wrong, got):
    refused(f"test rows must lie between -1 and 7, got {got}", test=rows([[1, wrong], [5, 7]]))


def test_every_variant_has_rows_of_its_own():
    seen_twice()  # up to row 7: four examples in two variants
    refused("test rows must lie between -1 and 7, got 1 to 8", seen_twice, test=torch.tensor([[[1, 3], [5, 8]]]))
    labels = torch.tensor([[[0, 1], [1, 0]]])
    refused("test rows must lie between -1 and 7, got 1 to 8", seen_twice, label=labels, warp=None, x=X[:4], shape=(1,),
            test=torch.tensor([[[1, 3], [5, 8]]]))
    refused("train rows must lie between -1 and 3, got 0 to 6", seen_twice, warp=None, x=X[:4], shape=(1,))


@pytest.mark.parametrize(("train", "test", "got"), [
    (torch.tensor([[0, 2], [4, 6]]), rows([[1, 3], [5, 7]]), "[2, 2] and [2, 2, 2]"),
    (rows([[0, 2], [4, 6]]), torch.tensor([1, 3]), "[2, 2, 2] and [2]"),
    (rows([[0, 2], [4, 6]])[:1], rows([[1, 3], [5, 7]]), "[1, 2, 2] and [2, 2, 2]"),
    (rows([[0, 2], [4, 6]]), rows([[1, 3]]), "[2, 2, 2] and [2, 1, 2]")])
def test_training_and_testing_are_of_as_many_seeds_and_tasks(train, test, got):
    refused(f"train [S, T, n] and test [S, T, m] must agree in S and T, got {got}", train=train, test=test)


# ---- labels


def test_classes_are_numbered_from_0_without_a_gap():
    gap = "labels must run from 0 without a gap, but there is no example of class"
    refused(f"{gap} 1 (largest label: 3)", y=torch.tensor([0, 0, 2, 2, 2, 2, 3, 3]))
    refused(f"{gap} 0 (largest label: 4)", y=Y + 1)


def test_a_negative_label_is_named():
    refused("labels must run from 0 without a gap, but there is no example of class -1 (largest label: 3)",
            y=torch.tensor([0, -1, 1, 1, 2, 2, 3, 3]))


@pytest.mark.parametrize(("changes", "said"), [
    ({"y": Y.int()}, "needs an int64 label for each example, got labels [8] of torch.int32"),
    ({"y": Y.view(8, 1)}, "needs an int64 label for each example, got labels [8, 1] of torch.int64"),
    ({"y": Y[:7]}, "needs as many targets as examples, got 8 examples and 7 targets"),
    ({"x": X[:0], "y": Y[:0]}, "needs as many targets as examples, got 0 examples and 0 targets")])
def test_every_example_has_a_label_of_whole_numbers(changes, said):
    refused(said, **changes)


# ---- output units


@pytest.mark.parametrize(("kind", "own", "task"), [
    ("train", [[0, 4], [2, 6]], 0), ("train", [[0, 2], [6, 6]], None), ("train", [[0, 2], [4, 2]], 1),
    ("test", [[1, 3], [3, 7]], 1)])
def test_an_example_of_a_foreign_unit_is_refused_with_its_task_and_seed(kind, own, task):
    good = getattr(stream(), kind)[0].tolist()
    changes = {kind: rows(good, own)}
    if task is None:
        stream(**changes)
    else:
        refused(f"task {task} has {kind} examples whose unit is not one of its classes (seed 1)", **changes)


def test_a_pad_is_of_no_unit():
    # A pad is read as example 0, whose unit 0 is none of the second task's.
    assert stream(train=rows([[0, 2], [4, -1]])).n_tasks == 2


@pytest.mark.parametrize("unit", [2, 3, -1])
def test_a_table_of_labels_leads_to_units_of_the_task(unit):
    # In the second variant class 1 becomes `unit`; the units of both tasks are 0 and 1.
    given = {"warp": None, "x": X[:4], "shape": (1,)}
    assert seen_twice(label=torch.tensor([[[0, 1], [1, 0]]]), **given).n_classes == 2
    refused("task 1 has train examples whose unit is not one of its classes (seed 0)", seen_twice,
            label=torch.tensor([[[0, 1], [0, unit]]]), **given)


def test_a_label_beyond_the_output_units_is_foreign_and_the_task_is_the_one_that_has_it():
    few = torch.tensor([[True, True, False], [False, False, True]]).expand(2, 2, 3)  # class 3 has no unit at all
    refused("task 1 has train examples whose unit is not one of its classes (seed 0)", classes=few)


@pytest.mark.parametrize("classes", [UNITS.expand(2, 2, 4).int(), UNITS, UNITS.expand(1, 2, 4), UNITS[:1].expand(2, 1, 4),
                                     torch.ones(2, 2, dtype=torch.bool)])
def test_classes_say_for_every_seed_and_task_which_units_are_its_own(classes):
    refused(f"classes must be bool [S, T, C], got {classes.dtype} {list(classes.shape)}", classes=classes)


def test_an_output_unit_that_belongs_to_no_task_must_be_declared_as_spare():
    five = torch.cat([torch.stack([UNITS, UNITS]), torch.zeros(2, 2, 1, dtype=torch.bool)], -1)
    assert (stream(classes=five, spare=1).n_classes, stream(classes=five, spare=1).spare) == (5, 1)
    refused("an output unit belongs to no task", classes=five)
    one = five.clone()
    one[0, 1, 4] = True  # of one seed alone it belongs to a task
    refused("an output unit belongs to no task", classes=one)


def test_a_spare_unit_belongs_to_no_task():
    refused("a spare output unit belongs to a task", spare=1)
    refused("an output unit belongs to no task", spare=-1)


def test_tasks_may_share_output_units_save_where_they_are_told_apart_by_them():
    shared = torch.ones(2, 2, 4, dtype=torch.bool)
    for scenario in ("class", "domain"):
        assert stream(classes=shared, scenario=scenario).scenario == scenario
    assert stream(scenario="task").scenario == "task"
    shared[:, 1, 0] = False
    refused("task-incremental needs output units of their own for every task", classes=shared, scenario="task")


@pytest.mark.parametrize("scenario", ["open", "Class", ""])
def test_a_scenario_that_is_none_is_refused_with_those_that_are(scenario):
    assert SCENARIOS == ("task", "domain", "class")
    refused(f"scenario {scenario!r} is none of task, domain, class", scenario=scenario)


# ---- pixels


@pytest.mark.parametrize(("warp", "ok"), [
    ([[0, 1], [1, 0]], True), ([[2, 2], [0, 2]], True), ([[0, 1], [3, 0]], False), ([[-1, 1], [1, 0]], False),
    ([[0], [1]], False), ([[0, 1, 2], [2, 1, 0]], False)])
def test_a_warp_holds_the_numbers_of_pixels_or_of_the_blank(warp, ok):
    if ok:
        assert seen_twice(warp=torch.tensor([warp])).warp is not None
    else:
        refused("the warp must hold 2 pixel numbers from 0 to 2", seen_twice, warp=torch.tensor([warp]))


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"std": (0.5,)}])
def test_channels_are_normalised_by_mean_and_std_together(given):
    refused("give mean and std, or neither", x=X.view(8, 1, 1, 1), shape=(1, 1, 1), **given)


@pytest.mark.parametrize(("shape", "mean", "std"), [
    ((2, 1, 1), (0.5,), (0.5,)), ((2, 1, 1), (0.5, 0.5), (0.5,)), ((2, 1, 1), (0.5, 0.5), (0.5, 0.0)),
    ((2, 1, 1), (0.5, 0.5), (0.5, -1.0)), ((2,), (0.5, 0.5), (0.5, 0.5))])
def test_mean_and_std_are_a_number_for_each_channel(shape, mean, std):
    refused(f"mean and std must be a number for each channel, std above 0, got {mean} and {std} for examples of shape "
            f"{shape}", x=torch.zeros(8, *shape), shape=shape, mean=mean, std=std)


def test_what_is_no_image_is_not_augmented():
    with pytest.raises(ValueError, match=r"^eight-v1: flip is for images .* got examples of shape \(1,\)"):
        stream(augment="flip")


# ---- what a learner gets


def test_a_stream_knows_its_sizes():
    one = stream(test=rows([[1, 3, -1], [5, 7, -1]]))
    assert (one.n_seeds, one.n_tasks, one.n_classes) == (2, 2, 4)


def test_every_lane_has_the_units_and_tables_of_its_own_seed():
    tables = torch.tensor([[[0, 1, 2, 3]], [[1, 0, 2, 3]]])
    own = stream(label=tables).lanes([1, 0, 1])
    assert own.keys() == {"classes", "label"}
    assert own["label"][:, 0].tolist() == [[1, 0, 2, 3], [0, 1, 2, 3], [1, 0, 2, 3]]
    assert own["classes"].shape == (3, 2, 4)


def lane(of: Stream, seed: int = 0, **given: Any) -> Pool:
    return of.pool(**given).lane({name: value[0] for name, value in of.lanes([seed]).items()})


def test_a_row_of_a_variant_is_its_example_with_the_pixels_exchanged():
    x, y = lane(seen_twice()).fetch(torch.tensor([2, 6, 5, 0]))
    assert x.tolist() == [[30, 31], [31, 30], [21, 20], [10, 11]]
    assert y.tolist() == [1, 1, 0, 0]


def test_a_pixel_from_beyond_the_image_is_blank():
    x, _ = lane(seen_twice(warp=torch.tensor([[[0, 1], [2, 0]]]))).fetch(torch.tensor([1, 5]))
    assert x.tolist() == [[20, 21], [0, 20]]


def test_more_rows_than_a_block_are_warped_alike():
    asked = torch.arange(8).repeat(130)  # 1040 rows, in blocks of 512
    x, y = lane(seen_twice()).fetch(asked)
    few, units = lane(seen_twice()).fetch(torch.arange(8))
    assert torch.equal(x, few.repeat(130, 1)) and torch.equal(y, units.repeat(130))


def test_a_row_of_a_variant_has_the_unit_that_its_table_gives_to_the_class():
    given = {"warp": None, "x": X[:4], "shape": (1,), "label": torch.tensor([[[0, 1], [1, 0]]])}
    x, y = lane(seen_twice(**given)).fetch(torch.tensor([0, 3, 4, 7]))
    assert y.tolist() == [0, 1, 1, 0]
    assert x.flatten().tolist() == [0, 3, 0, 3]  # the same examples


def test_a_pad_gives_an_example_that_exists():
    for of in (stream(), seen_twice()):
        x, y = lane(of).fetch(torch.tensor([1, -1]))
        own, unit = lane(of).fetch(torch.tensor([1]))
        assert torch.equal(x[:1], own) and torch.equal(y[:1], unit)
        assert x.isfinite().all() and 0 <= int(y[1]) < of.n_classes


def test_whole_numbers_are_scaled_and_real_ones_are_not():
    bytes_ = stream(x=torch.tensor([[0], [51], [102], [153], [204], [255], [0], [0]], dtype=torch.uint8), scale=1 / 255)
    x, _ = lane(bytes_, dtype=torch.float64).fetch(torch.tensor([1, 5]))
    torch.testing.assert_close(x, torch.tensor([[0.2], [1.0]], dtype=torch.float64))
    x, _ = lane(stream(scale=1 / 255)).fetch(torch.tensor([5]))
    assert x.tolist() == [[5.0]] and x.dtype == torch.float32


@pytest.mark.parametrize(("x", "scale"), [(torch.tensor([51, 102]), 1 / 255), (torch.tensor([0.2, 0.4]), 1 / 255)])
def test_channels_are_normalised_after_scaling(x, scale):
    # (0.2 - 0.5) / 0.25 = -1.2 and (0.4 - 0.3) / 0.1 = 1; of real numbers the scale is 1.
    of = stream(x=x.view(1, 2, 1, 1).expand(8, 2, 1, 1), shape=(2, 1, 1), scale=scale, mean=(0.5, 0.3), std=(0.25, 0.1))
    got, _ = lane(of, dtype=torch.float64).fetch(torch.tensor([3]))
    torch.testing.assert_close(got.flatten(), torch.tensor([-1.2, 1.0], dtype=torch.float64), rtol=0, atol=1e-6)
    again, _ = lane(of, dtype=torch.float64).fetch(torch.tensor([3]))
    assert torch.equal(got, again)  # what is stored was not written into


def test_stored_examples_are_as_the_pool_keeps_them_until_they_are_made_real():
    of = stream(x=torch.full((8, 1), 51, dtype=torch.uint8), scale=1 / 255)
    pool = lane(of)
    stored, y = pool.stored(torch.tensor([4, 7]))
    assert stored.dtype == torch.uint8 and stored.flatten().tolist() == [51, 51] and y.tolist() == [2, 3]
    assert torch.equal(pool.real(stored), pool.fetch(torch.tensor([4, 7]))[0])


def test_examples_that_were_gathered_already_are_taken_as_they_are():
    asked = torch.tensor([6, 1])
    ready = torch.tensor([[7, 8, 0], [9, 5, 0]])
    x, y = lane(seen_twice()).stored(asked, ready)
    assert x.tolist() == [[8, 7], [9, 5]]  # row 6 is of the variant that exchanges pixels
    assert y.tolist() == [1, 0]


def test_in_a_task_incremental_stream_the_units_of_one_task_compete():
    y = torch.tensor([3, 0])
    rivals = lane(stream(scenario="task")).rivals(y)
    assert rivals is not None
    assert rivals.tolist() == [[False, False, True, True], [True, True, False, False]]
    assert lane(stream()).rivals(y) is None and lane(seen_twice()).rivals(y) is None


def test_the_units_that_compete_are_those_of_the_lanes_own_seed():
    mixed = torch.tensor([[True, False, True, False], [False, True, False, True]])
    of = stream(scenario="task", classes=torch.stack([UNITS, mixed]), train=rows([[0, 2], [4, 6]], [[0, 4], [2, 6]]),
                test=rows([[1, 3], [5, 7]], [[1, 5], [3, 7]]))
    pool = lane(of, seed=1)
    rivals = pool.rivals(torch.tensor([2]))
    assert rivals is not None and rivals.tolist() == [[True, False, True, False]]
    assert (pool.n_tasks, pool.n_classes) == (2, 4)


def test_a_pool_lies_where_it_is_asked_to_lie():
    assert lane(stream(), dtype=torch.float64).fetch(torch.tensor([0]))[0].dtype == torch.float64
    assert replace(stream(), ordered=True).pool().x is X  # and is not copied where that is where it is
