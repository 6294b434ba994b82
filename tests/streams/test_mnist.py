"""Streams of MNIST, from small files in MNIST's format and, where LIFELONG_DATA has it, from MNIST itself."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import mnist_files
from lifelong.streams import mnist
from PIL import Image

from lifelong.randomness import generator

MAKERS: dict[str, Any] = {
    "split-mnist-v1": mnist.split, "permuted-mnist-v1": mnist.permuted, "rotated-mnist-gem-v1": mnist.rotated_gem,
    "rotated-mnist-mer-v1": mnist.rotated_mer, "rotated-mnist-der-v1": mnist.rotated_der,
}
SMALL: dict[str, Any] = {name: {"tasks": 2} | ({"examples": 50} if name != "split-mnist-v1" else {}) for name in MAKERS}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"

real = pytest.mark.skipif("LIFELONG_DATA" not in os.environ, reason="LIFELONG_DATA is not set, so MNIST is not here")


def write(folder: Path, sizes: dict[str, int], ending: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in mnist_files(sizes).items():
        opened = gzip.open if ending == ".gz" else open
        with opened(folder / f"{name}{ending}", "wb") as file:
            file.write(content)
    return folder


def passes_for_mnist(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    """The files of these sizes are taken for those of MNIST."""
    monkeypatch.setattr(mnist, "_SIZES", sizes)
    monkeypatch.setattr(mnist, "_SHA256", {name: hashlib.sha256(content).hexdigest()
                                           for name, content in mnist_files(sizes).items()})


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data folder with 200 + 60 images that pass for all of MNIST."""
    sizes = {"train": 200, "t10k": 60}
    passes_for_mnist(monkeypatch, sizes)
    write(tmp_path / "mnist/MNIST/raw", sizes)
    yield tmp_path


@pytest.mark.parametrize("name", MAKERS)
def test_a_stream_is_made_again_from_its_options(name: str, small: Path) -> None:
    stream = MAKERS[name]([0, 1, 2, 3, 4], data=small, boundaries=False, test_examples=55, **SMALL[name])
    again = MAKERS[name]([3], data=small, **stream.options)
    assert again.name == stream.name == name
    assert not again.boundaries
    for tensor in ("train", "test", "classes"):
        assert torch.equal(getattr(again, tensor)[0], getattr(stream, tensor)[3])


@pytest.mark.parametrize("name", MAKERS)
def test_training_images_are_the_first_and_test_images_the_last(name: str, small: Path) -> None:
    stream = MAKERS[name]([0], data=small, **SMALL[name])
    train, test = (rows[rows >= 0] % 260 for rows in (stream.train, stream.test))
    assert int(train.max()) < 200 <= int(test.min())


@pytest.mark.parametrize("layout", ["mnist/MNIST/raw", "MNIST/raw", "raw", "mnist", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_is_found_where_people_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str,
                                             ending: str) -> None:
    passes_for_mnist(monkeypatch, {"train": 20, "t10k": 10})
    write(tmp_path / layout, {"train": 20, "t10k": 10}, ending)
    stream = mnist.split([0], data=tmp_path)
    assert stream.x.shape == (30, 1, 28, 28)
    assert stream.y[:20].tolist() == [*range(10)] * 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def prolong(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def exchange(path: Path) -> None:
    path.write_bytes(path.with_name(LABELS).read_bytes())


def scribble(path: Path) -> None:
    path.write_bytes(b"\0" + path.read_bytes()[1:-1] + b"\0" * 2)


@pytest.mark.parametrize("harm", [cut, prolong, exchange, scribble])
def test_a_damaged_or_foreign_file_is_named(small: Path, harm: Any) -> None:
    path = small / "mnist/MNIST/raw" / IMAGES
    harm(path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is not MNIST's {IMAGES}, or is truncated"):
        mnist.split([0], data=small)


def test_labels_beyond_9_are_not_mnists(small: Path) -> None:
    path = small / "mnist/MNIST/raw" / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\x0a")
    with pytest.raises(ValueError, match="label 10"):
        mnist.split([0], data=small, unverified=True)


def test_a_damaged_gzip_file_is_named(small: Path) -> None:
    plain = small / "mnist/MNIST/raw" / IMAGES
    path = plain.with_suffix(".gz")
    path.write_bytes(gzip.compress(plain.read_bytes())[:-9])
    plain.unlink()
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} is damaged"):
        mnist.split([0], data=small)


@pytest.mark.parametrize("name", MAKERS)
def test_another_data_set_under_mnists_file_names_is_used_only_where_one_insists(name: str, small: Path) -> None:
    raw = small / "mnist/MNIST/raw"
    known = MAKERS[name]([0], data=small, **SMALL[name])
    content = (raw / LABELS).read_bytes()
    (raw / LABELS).write_bytes(content[:-2] + content[:-3:-1])  # the last two labels change places
    with pytest.raises(ValueError, match=f"{LABELS} is not MNIST's {LABELS}: .*Fashion-MNIST.*unverified=True"):
        MAKERS[name]([0], data=small, **SMALL[name])
    stream = MAKERS[name]([0], data=small, **SMALL[name], unverified=True)
    assert stream.content == frozenset(), "classes of MNIST have been claimed for another data set"
    assert stream.options == known.options | {"unverified": True}
    again = MAKERS[name]([0], data=small, **stream.options)
    assert torch.equal(again.x, stream.x) and torch.equal(again.train, stream.train)


@pytest.mark.parametrize("source", [mnist.rotations, mnist.permutations])
def test_a_source_of_another_data_set_is_used_only_where_one_insists(source: Any, small: Path) -> None:
    (raw := small / "mnist/MNIST/raw" / IMAGES).write_bytes(raw.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="unverified=True"):
        source(data=small, domains=2)
    assert source(data=small, domains=2, unverified=True).options == {"domains": 2, "unverified": True}


def test_without_mnist_the_way_to_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^MNIST's {IMAGES} is not in {re.escape(str(tmp_path))} .*the option data"):
        mnist.rotated_gem([0], data=tmp_path)


def test_a_user_who_named_no_folder_gets_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    passes_for_mnist(monkeypatch, {"train": 20, "t10k": 10})
    monkeypatch.setattr("torchvision.datasets.MNIST",
                        lambda root, download: write(root / "MNIST/raw", {"train": 20, "t10k": 10}))
    assert mnist.split([0]).n_classes == 10


def test_more_test_images_than_there_are_cannot_be_asked_for(small: Path) -> None:
    with pytest.raises(ValueError, match="^split-mnist-v1: test_examples is 61, but there are 60 test images"):
        mnist.split([0], data=small, test_examples=61)


@real
def test_gems_protocol_on_mnist() -> None:
    stream = mnist.rotated_gem([0, 1])
    assert stream.x.shape == (70_000, 785)
    assert (stream.n_tasks, stream.n_classes) == (20, 10)
    assert (stream.train.shape, stream.test.shape) == ((2, 20, 1000), (2, 20, 10_000))
    # The first labels of the training and of the test files, as in every tutorial.
    assert stream.y[:5].tolist() == [5, 0, 4, 1, 9]
    assert stream.y[60_000:60_005].tolist() == [7, 2, 1, 0, 4]


@real
def test_a_fetched_row_is_the_rotated_image() -> None:
    stream = mnist.rotated_der([0], tasks=3, test_examples=100)
    assert stream.warp is not None
    lane = stream.pool().lane({name: value[0] for name, value in stream.lanes([0]).items()})
    draws = torch.rand(3, generator=generator(0, "stream", "angles"), dtype=torch.float64)
    for task in range(3):
        rows = stream.test[0, task, :20]
        stored = stream.x[rows % 70_000, :784].view(-1, 28, 28).numpy()
        expected = np.stack([np.array(Image.fromarray(image).rotate(180 * float(draws[task]))) for image in stored])
        torch.testing.assert_close(lane.fetch(rows)[0][:, 0], torch.from_numpy(expected) / 255)


@real
def test_every_digit_is_in_one_task_of_split_mnist() -> None:
    stream = mnist.split([0, 1])
    assert (stream.train >= 0).sum((1, 2)).tolist() == [60_000, 60_000]
    assert (stream.test >= 0).sum((1, 2)).tolist() == [10_000, 10_000]
