"""Streams of scikit-learn's digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lifelong.streams import digits
from sklearn.datasets import load_digits

MAKERS: dict[str, Any] = {
    "rotated-digits-v1": digits.rotated, "permuted-digits-v1": digits.permuted, "split-digits-v1": digits.split,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_stream_is_made_again_from_its_options(name: str) -> None:
    stream = MAKERS[name]([0, 1, 2, 3, 4], boundaries=False)
    again = MAKERS[name]([3], **stream.options)
    assert again.name == stream.name == name
    assert not again.boundaries
    assert torch.equal(again.train[0], stream.train[3])
    assert torch.equal(again.test[0], stream.test[3])


@pytest.mark.parametrize("name", MAKERS)
def test_five_tasks_of_8x8_pixels_from_0_to_1(name: str) -> None:
    stream = MAKERS[name]([0])
    assert (stream.n_tasks, stream.n_classes, stream.shape) == (5, 10, (1, 8, 8))
    assert int(stream.x.max()) * stream.scale == 1


def test_all_digits_are_used_and_a_fifth_of_each_class_tests() -> None:
    stream = digits.rotated([0])
    train, test = stream.train[0, 0], stream.test[0, 0]
    assert (len(train), len(test)) == (1440, 355)
    # scikit-learn has 178 zeros, 182 ones, 177 twos, ...; a fifth is rounded down.
    assert torch.bincount(stream.y[test]).tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]


def test_seeds_share_the_test_digits() -> None:
    stream = digits.permuted([0, 1])
    assert torch.equal(stream.test[0], stream.test[1])


def test_the_content_is_what_version_1_says() -> None:
    stream = digits.rotated([0], tasks=2, examples=4)
    assert (stream.train[0] % 1797).tolist() == [[256, 1638, 1382, 1269], [769, 106, 1584, 11]]
    assert stream.warp is not None
    assert (stream.warp == 64).sum(-1).tolist() == [[8, 0]]


def test_the_digits_are_those_that_scikit_learn_loads():
    pixels, target = load_digits(return_X_y=True)
    images = digits._digits()
    assert torch.equal(images.x.flatten(1), torch.from_numpy(pixels).to(torch.uint8))
    assert images.y.tolist() == target.tolist()
