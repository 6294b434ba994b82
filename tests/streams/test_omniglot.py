"""Streams of Omniglot, from small archives in its layout and, where LIFELONG_DATA has it, from Omniglot itself."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelong.streams import omniglot
from PIL import Image

PARTS = {"background": {"Greek": 3, "Latin": 2}, "evaluation": {"Angelic": 2, "Tengwar": 4}}

real = pytest.mark.skipif("LIFELONG_DATA" not in os.environ, reason="LIFELONG_DATA is not set, so Omniglot is not here")


def png(number: int, side: int = 105) -> bytes:
    """A 1-bit drawing that shows `number` in binary, as columns of ink on white paper."""
    paper = np.full((side, side), 255, dtype=np.uint8)
    for bit in range(10):
        if number >> bit & 1:
            paper[:, 10 * bit:10 * bit + 10] = 0
    file = io.BytesIO()
    Image.fromarray(paper).convert("1").save(file, "PNG")
    return file.getvalue()


def files(part: str) -> dict[str, bytes]:
    """The files of one part in the official layout; drawing number 20 * character + drawer."""
    made, character = {}, 0
    for alphabet, characters in PARTS[part].items():
        for c in range(characters):
            for drawer in range(20):
                name = f"images_{part}/{alphabet}/character{c + 1:02}/{character + 1:04}_{drawer + 1:02}.png"
                made[name] = png(20 * character + drawer)
            character += 1
    return made


def pack(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed(content):
            archive.writestr(name, content[name])
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five and six characters pass for all of Omniglot."""
    monkeypatch.setattr(omniglot, "_CHARACTERS", {part: sum(own.values()) for part, own in PARTS.items()})


@pytest.fixture
def small(tmp_path: Path, few: None) -> Path:
    """A data folder with those characters."""
    for part in PARTS:
        pack(tmp_path / f"omniglot/images_{part}.zip", files(part))
    return tmp_path


MAKERS: dict[str, Any] = {"split-omniglot-v1": omniglot.split, "omniglot-alphabets-v1": omniglot.alphabets}
FEW: dict[str, Any] = {"lengths": (1, 3, 5), "units": 9, "classes": 6}


@pytest.mark.parametrize("drawings", ["fixed", "random"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_stream_is_made_again_from_its_options(name: str, drawings: str, small: Path) -> None:
    stream = MAKERS[name]([0, 1, 2, 3, 4], data=small, tasks=3, drawings=drawings, boundaries=False)
    again = MAKERS[name]([3], data=small, **stream.options)
    assert again.name == stream.name == name
    assert not again.boundaries
    for tensor in ("train", "test", "classes", "label"):
        assert torch.equal(getattr(again, tensor)[0], getattr(stream, tensor)[3])


def test_drawings_are_in_the_order_of_alphabets_characters_and_drawers(small: Path) -> None:
    x = omniglot.split([0], data=small, tasks=6, size=105).x
    for number in range(120):
        columns = x[number, 0, 50, 5:100:10]
        assert [int(value) for value in columns] == [0 if number >> bit & 1 else 255 for bit in range(10)]


def test_the_first_fifteen_drawers_train_and_the_last_five_test(small: Path) -> None:
    stream = omniglot.split([0, 1], data=small, tasks=6)
    assert sorted(set((stream.train[1] % 20).flatten().tolist())) == [*range(15)]
    assert sorted(set((stream.test[1] % 20).flatten().tolist())) == [*range(15, 20)]
    assert (stream.train.shape, stream.test.shape) == ((2, 6, 15), (2, 6, 5))


def test_random_drawings_are_drawn_for_each_seed_and_character(small: Path) -> None:
    stream = omniglot.split([0, 1], data=small, tasks=6, drawings="random")
    tested = {frozenset((own % 20).tolist()) for tasks in stream.test for own in tasks}
    assert len(tested) > 8
    both = torch.cat([stream.train, stream.test], -1).sort(-1).values
    assert bool((both % 20 == torch.arange(20)).all())


@pytest.mark.parametrize(("size", "how"), [(28, Image.Resampling.LANCZOS), (84, Image.Resampling.BILINEAR)])
def test_drawings_are_resized_as_oml_and_anml_do(small: Path, size: int, how: Image.Resampling) -> None:
    x = omniglot.split([0], data=small, tasks=6, size=size).x
    expected = Image.open(io.BytesIO(png(77))).convert("L").resize((size, size), how)
    np.testing.assert_array_equal(x[77, 0], np.array(expected))


def test_a_task_of_the_alphabets_is_an_alphabet(small: Path) -> None:
    stream = omniglot.alphabets([0, 1, 2], data=small, tasks=4)
    assert (stream.scenario, stream.n_classes, len(stream.y)) == ("task", 11, 220)
    for seed in range(3):
        tasks = [frozenset(stream.y[rows[rows >= 0]].tolist()) for rows in stream.train[seed]]
        assert set(tasks) == {frozenset({0, 1, 2}), frozenset({3, 4}), frozenset({5, 6}), frozenset({7, 8, 9, 10})}


def test_fewer_alphabets_are_the_first_ones_for_every_seed(small: Path) -> None:
    stream = omniglot.alphabets([0, 1, 2], data=small, tasks=2)
    assert stream.n_classes == 5
    assert {int(stream.y[rows.max()]) for rows in stream.test.flatten(0, 1)} == {2, 4}


@pytest.mark.parametrize("layout", ["omniglot", "omniglot-py", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_omniglot_is_found_where_people_have_it(tmp_path: Path, few: None, layout: str, packed: bool) -> None:
    content = files("evaluation")
    if packed:
        pack(tmp_path / layout / "images_evaluation.zip", content)
    else:
        for name, image in content.items():
            (tmp_path / layout / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / layout / name).write_bytes(image)
    assert omniglot.split([0], data=tmp_path, tasks=6).x.shape == (120, 1, 28, 28)


def test_it_is_decoded_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = omniglot.split([0], data=small, tasks=6)
    monkeypatch.setattr(omniglot, "_pixels", None)
    assert torch.equal(omniglot.split([0], data=small, tasks=6).x, first.x)


def cut(path: Path, content: dict[str, bytes]) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def lose_a_drawing(path: Path, content: dict[str, bytes]) -> None:
    pack(path, dict(list(content.items())[1:]))


def damage_a_drawing(path: Path, content: dict[str, bytes]) -> None:
    name = next(iter(content))
    pack(path, content | {name: content[name][:60]})


def exchange_a_drawing(path: Path, content: dict[str, bytes]) -> None:
    pack(path, content | {next(iter(content)): png(1, side=300)})


def climb(path: Path, content: dict[str, bytes]) -> None:
    pack(path, content | {"../../evil.png": b""})


def inflate(path: Path, content: dict[str, bytes]) -> None:
    pack(path, content | {"large": bytes(100_000_001)})


@pytest.mark.parametrize(("harm", "sentence"), [
    (cut, "is damaged (File is not a zip file)"),
    (lose_a_drawing, "should have 20 drawings of each of 6 characters, but has 119 drawings of 6"),
    (damage_a_drawing, "character01/0001_01.png is damaged"),
    (exchange_a_drawing, "character01/0001_01.png has 300x300 pixels instead of 105x105"),
    (climb, "names '../../evil.png', which lies outside"),
    (inflate, "more than the 100,000,000 that this data can need"),
])
def test_a_damaged_or_foreign_archive_is_named(small: Path, harm: Any, sentence: str) -> None:
    path = small / "omniglot/images_evaluation.zip"
    harm(path, files("evaluation"))
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        omniglot.split([0], data=small)
    assert str(caught.value).startswith(str(path))


def test_without_omniglot_the_way_to_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="^Omniglot's images_evaluation is not in .*brendenlake/omniglot"):
        omniglot.split([0], data=tmp_path)


def test_a_user_who_named_no_folder_gets_a_download(tmp_path: Path, few: None,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, background: bool, download: bool) -> None:
        part = "background" if background else "evaluation"
        pack(Path(root) / f"omniglot-py/images_{part}.zip", files(part))

    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.Omniglot", download)
    assert omniglot.split([0], tasks=6).n_classes == 6


@pytest.mark.parametrize(("options", "sentence"), [
    ({"tasks": 7}, "7 tasks of 1 classes need 7 classes, but there are 6"),
    ({"part": "both"}, "part must be one of 'background', 'evaluation'; got 'both'"),
    ({"size": 32}, "size must be one of 28, 42, 84, 105; got 32"),
    ({"drawings": "some", "tasks": 2}, "drawings must be one of 'fixed', 'random'; got 'some'"),
    ({"scenario": "task", "tasks": 2}, "the task scenario needs 2 or more classes in every task"),
])
def test_a_request_that_cannot_be_met_is_refused(small: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^split-omniglot-v1: .*" + re.escape(sentence)):
        omniglot.split([0], data=small, **options)


def test_there_are_only_so_many_alphabets(small: Path) -> None:
    with pytest.raises(ValueError, match="^omniglot-alphabets-v1: tasks is 5, but there are 4 alphabets"):
        omniglot.alphabets([0], data=small, tasks=5)


def order(stream: Any, seed: int) -> list[int]:
    """The characters of a seed in the order in which they are learned, each as often as it has images there."""
    rows = stream.train[seed].flatten()
    return stream.y[rows[rows >= 0]].tolist()


def test_o600_shows_one_character_after_another_and_measures_between(small: Path) -> None:
    stream = omniglot.o600([0, 1, 2], data=small, **FEW)
    assert (stream.ordered, stream.retention, stream.boundaries, stream.spare) == (True, True, False, 4)
    assert (stream.n_tasks, stream.n_classes) == (3, 9)
    assert [(task >= 0).sum() for task in stream.train[0]] == [15, 30, 30]
    assert [(task >= 0).sum() for task in stream.test[0]] == [5, 10, 10]
    for seed in range(3):
        seen = order(stream, seed)
        assert len(set(seen)) == 5
        assert seen == [seen[15 * i] for i in range(5) for _ in range(15)]
        units = stream.pool().lane({"label": stream.label[seed]}).fetch(stream.train[seed, -1, :30])[1]
        assert units.tolist() == [3] * 15 + [4] * 15
        rows = stream.train[seed]
        assert set((rows[rows >= 0] % 20).tolist()) == {*range(15)}
    assert len({tuple(order(stream, seed)) for seed in range(3)}) > 1


def test_a_shorter_o600_is_the_beginning_of_a_longer_one(small: Path) -> None:
    short = omniglot.o600([0, 1], data=small, **FEW | {"lengths": (3,)})
    long = omniglot.o600([0, 1], data=small, **FEW)
    for seed in range(2):
        assert order(short, seed) == order(long, seed)[:45]


def test_o600_draws_other_characters_to_choose_step_sizes_on(small: Path) -> None:
    stream = omniglot.o600([0, 1, 2], data=small, **FEW)
    again = omniglot.o600([0, 1, 2], data=small, **stream.options)
    search = omniglot.o600([0, 1, 2], data=small, **stream.options | {"search": True})
    other = omniglot.o600([0], data=small, part="background", first=1, classes=4, lengths=(2, 4))
    assert torch.equal(again.train, stream.train)
    assert not torch.equal(search.train, stream.train)
    assert {*order(other, 0)} == {1, 2, 3, 4}
    assert other.n_classes == 1000
    assert stream.content == frozenset(f"omniglot/{c}" for c in ("Angelic/character01", "Angelic/character02",
                                       "Tengwar/character01", "Tengwar/character02", "Tengwar/character03",
                                       "Tengwar/character04"))


def test_g600_takes_the_first_characters_and_draws_their_order_and_drawings(small: Path) -> None:
    stream = omniglot.g600([0, 1, 2, 3], data=small, lengths=(2, 4))
    again = omniglot.g600([3], data=small, **stream.options)
    assert (stream.shape, stream.n_classes, stream.spare) == ((1, 84, 84), 4, 0)
    assert torch.equal(again.train[0], stream.train[3])
    assert all({*order(stream, seed)} == {0, 1, 2, 3} for seed in range(4))
    assert len({tuple(order(stream, seed)) for seed in range(4)}) > 1
    assert len({tuple(sorted((own[own >= 0] % 20).tolist())) for own in stream.test[:, 0]}) > 1


@pytest.mark.parametrize(("make", "options", "sentence"), [
    (omniglot.o600, FEW | {"lengths": (2, 7)}, "lengths ask for 7 classes, but there are 6"),
    (omniglot.o600, FEW | {"units": 4}, "5 classes need as many output units, but units is 4"),
    (omniglot.o600, FEW | {"lengths": (2, 2)}, "lengths must be increasing"),
    (omniglot.o600, FEW | {"lengths": ()}, "lengths must be increasing"),
    (omniglot.o600, FEW | {"lengths": (0, 2)}, "lengths[0] must be a whole number of 1 or more, got 0"),
    (omniglot.o600, FEW | {"first": 1}, "characters 1 to 6 are needed, but the evaluation part has 6"),
    (omniglot.o600, FEW | {"part": "both"}, "part must be one of 'background', 'evaluation'; got 'both'"),
    (omniglot.g600, {"lengths": (7,)}, "characters 0 to 6 are needed, but the evaluation part has 6"),
    (omniglot.g600, {"lengths": (2,), "size": 32}, "size must be one of 28, 42, 84, 105; got 32"),
    (omniglot.o600, FEW | {"classes": 0}, "classes must be a whole number of 1 or more, got 0"),
])
def test_a_long_stream_that_cannot_be_is_refused(small: Path, make: Any, options: dict[str, Any],
                                                 sentence: str) -> None:
    with pytest.raises(ValueError, match="^omniglot-[og]600-v1: .*" + re.escape(sentence)):
        make([0], data=small, **options)


@real
def test_real_evaluation_characters_come_with_fifteen_and_five_drawings() -> None:
    stream = omniglot.split([0, 1], tasks=600)
    assert stream.x.shape == (659 * 20, 1, 28, 28)
    assert stream.n_classes == 600
    assert (stream.train.shape, stream.test.shape) == ((2, 600, 15), (2, 600, 5))
    # Mostly white paper: ANML's normalisation gives a mean of 0.922.
    assert 0.9 < float(stream.x.float().mean()) / 255 < 0.95
