"""Streams of made-up characters."""

from __future__ import annotations

import pytest
import torch
from lifelong.streams import glyphs


def test_a_stream_is_made_again_from_its_options() -> None:
    stream = glyphs.split([0, 1, 2, 3, 4], tasks=3, classes_per_task=2, classes=9, boundaries=False)
    again = glyphs.split([3], **stream.options)
    assert again.name == stream.name == "split-glyphs-v1"
    assert not again.boundaries
    assert torch.equal(again.x, stream.x)
    for tensor in ("train", "test", "classes", "label"):
        assert torch.equal(getattr(again, tensor)[0], getattr(stream, tensor)[3])


def test_ten_tasks_of_five_characters_with_fifteen_and_five_drawings() -> None:
    stream = glyphs.split([0])
    assert (stream.n_tasks, stream.n_classes, stream.shape) == (10, 50, (1, 28, 28))
    assert (stream.train.shape, stream.test.shape) == ((1, 10, 75), (1, 10, 25))
    assert bool((stream.train % 20 < 15).all()) and bool((stream.test % 20 >= 15).all())


def test_a_character_is_the_same_however_many_are_drawn() -> None:
    many = glyphs.drawings(103)
    for classes in (1, 3, 101):
        assert torch.equal(glyphs.drawings(classes), many[:classes])


def test_drawings_are_bright_ink_on_black_paper_with_room_at_the_edge() -> None:
    x = glyphs.drawings(50).float() / 255
    share = x.mean((2, 3))
    assert 0.01 < float(share.min()) and float(share.max()) < 0.4
    assert float(x[..., 0, :].mean()) < 0.01 and float(x[..., :, 0].mean()) < 0.01


def test_characters_can_be_told_apart_but_not_by_comparing_pixels_alone() -> None:
    x = glyphs.drawings(100).float().flatten(2)
    mean, asked = x[:, :15].mean(1), x[:, 15:].flatten(0, 1)
    found = torch.cdist(asked, mean).argmin(1)
    # Chance is 0.01; measured: 0.588.
    assert 0.45 < float((found == torch.arange(100).repeat_interleave(5)).float().mean()) < 0.75


def test_the_content_is_what_version_1_says() -> None:
    ink = glyphs.drawings(3).long().sum((2, 3))[:, :3]
    # Another processor may round a few pixels otherwise.
    expected = torch.tensor([[17155, 13406, 8726], [17096, 15671, 10067], [12178, 14030, 10700]])
    torch.testing.assert_close(ink, expected, atol=50, rtol=0)


def test_more_characters_than_are_drawn_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="^split-glyphs-v1: 2 tasks of 5 classes need 10 classes, but there are 9"):
        glyphs.split([0], tasks=2, classes=9)
    with pytest.raises(ValueError, match="^split-glyphs-v1: classes must be a whole number of 1 or more, got 0"):
        glyphs.split([0], classes=0)
