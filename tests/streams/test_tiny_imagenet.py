"""Streams of Tiny-ImageNet in its official layout, and of its part of 100 classes, where LIFELONG_DATA has it."""

from __future__ import annotations

import io
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lifelong.streams import tiny_imagenet
from PIL import Image

from lifelong.data.pictures import decoding, photos

EACH, HELD = 4, 2
NAMES = ("n01443537", "n02124075", "n09428293")
PIXELS = np.random.default_rng(0).integers(0, 256, (3, EACH + HELD, 64, 64, 3), dtype=np.uint8)

real = pytest.mark.skipif("LIFELONG_DATA" not in os.environ,
                          reason="LIFELONG_DATA is not set, so tiny-imagenet-100 is not here")


def png(c: int, i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[c, i]).save(file, "PNG", compress_level=1)
    return file.getvalue()


def official() -> dict[str, bytes]:
    """train by class, val in one folder with a file that tells the classes, test without labels."""
    files = {f"train/{name}/images/{name}_{i}.JPEG": png(c, i) for c, name in enumerate(NAMES) for i in range(EACH)}
    # The val folder's numbers are mixed: picture v is the v // 3-th of class v % 3.
    for v in range(len(NAMES) * HELD):
        files[f"val/images/val_{v}.JPEG"] = png(v % 3, EACH + v // 3)
    told = "".join(f"val_{v}.JPEG\t{NAMES[v % 3]}\t0\t0\t62\t62\n" for v in range(len(NAMES) * HELD))
    boxes = {f"train/{name}/{name}_boxes.txt": b"0" for name in NAMES}
    return files | boxes | {"val/val_annotations.txt": told.encode(), "test/images/test_0.JPEG": png(0, 0),
                            "wnids.txt": "\n".join(NAMES).encode()}


def parts() -> dict[str, bytes]:
    """The layout of the part: a folder for each class, of 6 images, in one for each part."""
    where = dict(zip(NAMES, ("train", "val", "test"), strict=True))
    return {f"{where[name]}/{name}/{name}_{i}.JPEG": png(c, i) for c, name in enumerate(NAMES)
            for i in range(EACH + HELD)}


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three classes pass for all, with a cache of their own."""
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tiny_imagenet, "_WHOLE", replace(tiny_imagenet._WHOLE, parts={"all": 3}, images=EACH + HELD))


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_imagenet, "_PART", replace(
        tiny_imagenet._PART, parts={"train": 1, "val": 1, "test": 1}, images=EACH + HELD))


@pytest.mark.parametrize("packed", [True, False])
def test_the_official_layout_trains_on_train_and_tests_on_val(tmp_path: Path, packed: bool) -> None:
    files = {f"tiny-imagenet-200/{name}": content for name, content in official().items()}
    if packed:
        with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as archive:
            for name, content in reversed(files.items()):
                archive.writestr(name, content)
    else:
        put(tmp_path, files)
    stream = tiny_imagenet.split([0, 1], data=tmp_path, tasks=3, train=EACH, test=HELD)
    assert stream.name == "split-tiny-imagenet-v1"
    np.testing.assert_array_equal(stream.x.view(3, EACH + HELD, 3, 64, 64), PIXELS.transpose(0, 1, 4, 2, 3))
    assert set((stream.train % (EACH + HELD)).flatten().tolist()) == {*range(EACH)}
    assert set((stream.test % (EACH + HELD)).flatten().tolist()) == {*range(EACH, EACH + HELD)}
    assert stream.content == {f"imagenet/{name}" for name in NAMES}


def test_der_has_ten_tasks_of_twenty_classes_cropped_and_flipped(monkeypatch: pytest.MonkeyPatch) -> None:
    every = photos.Photos(torch.zeros(200, 550, 3, 1, 1, dtype=torch.uint8), [f"imagenet/{c}" for c in range(200)],
                          {"all": range(200)})
    monkeypatch.setattr(tiny_imagenet, "load", lambda what, data: every)
    stream = tiny_imagenet.der([0])
    assert (stream.n_tasks, stream.n_classes, stream.scenario) == (10, 200, "class")
    assert (stream.train.shape[2], stream.test.shape[2]) == (20 * 500, 20 * 50)
    assert (stream.defaults["epochs"], stream.defaults["batch_size"]) == (100, 32)
    assert (stream.augment, stream.mean[0], stream.std[2]) == ("crop(padding=4) + flip", 0.4802, 0.2821)


WRONG: dict[str, tuple[dict[str, bytes], str]] = {
    "another size": ({"val/images/val_0.JPEG": b"small"}, "val_0.JPEG has 12x12 pixels instead of 64x64"),
    "no such picture": ({"val/val_annotations.txt": b"val_0.JPEG\tn01443537\t0\nval_99.JPEG\tn01443537\t0\n"},
                        "val_annotations.txt names val_99.JPEG, which is missing"),
    "a class without val": ({"val/val_annotations.txt": b"val_0.JPEG\tn01443537\t0\n"},
                            "class n01443537 of Tiny-ImageNet should have 6 images, but has 4 in train and 1 in val"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told(tmp_path: Path, what: str) -> None:
    harm, words = WRONG[what]
    small = io.BytesIO()
    Image.new("RGB", (12, 12)).save(small, "PNG")
    put(tmp_path / "tiny-imagenet-200", official() | {k: small.getvalue() if v == b"small" else v
                                                      for k, v in harm.items()})
    with pytest.raises(ValueError, match=re.escape(words)):
        tiny_imagenet.split([0], data=tmp_path, tasks=3)
    assert not [path for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"]


def test_a_class_in_two_parts_is_refused(tmp_path: Path, part: None) -> None:
    put(tmp_path / "tiny-imagenet-100", parts() | {"test/n01443537/n01443537_0.JPEG": png(0, 0)})
    with pytest.raises(ValueError, match="class n01443537 is in train and in test, but a class must not be both"):
        tiny_imagenet.split_100([0], data=tmp_path)


@pytest.mark.parametrize("named", [True, False])
def test_the_part_is_read_from_zips_and_its_streams_bear_its_name(tmp_path: Path, part: None, named: bool) -> None:
    root = tmp_path / "tiny-imagenet-100" if named else tmp_path
    root.mkdir(exist_ok=True)
    for one in ("train", "val", "test"):
        with zipfile.ZipFile(root / f"{one}.zip", "w") as archive:
            for name, content in parts().items():
                if name.startswith(one):
                    archive.writestr(name, content)
    stream = tiny_imagenet.split_100([0], data=tmp_path, tasks=3, train=EACH, test=HELD)
    np.testing.assert_array_equal(stream.x.view(3, EACH + HELD, 3, 64, 64), PIXELS.transpose(0, 1, 4, 2, 3))
    source = tiny_imagenet.source_100(data=tmp_path)
    test = tiny_imagenet.gemcl_100([0], data=tmp_path, lengths=(1,), train=EACH, test=HELD)
    assert (source.content, test.content) == ({"imagenet/n01443537"}, {"imagenet/n09428293"})
    assert source.name == "tiny-imagenet-100-v1"


def test_no_stream_of_the_part_can_be_taken_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    every = photos.Photos(torch.zeros(100, 300, 3, 1, 1, dtype=torch.uint8), [f"imagenet/{c}" for c in range(100)],
                          {"train": range(64), "val": range(64, 80), "test": range(80, 100)})
    monkeypatch.setattr(tiny_imagenet, "load", lambda what, data: every)
    made: list[Any] = [make([0]) for make in (
        tiny_imagenet.split_100, tiny_imagenet.agem_100, tiny_imagenet.gpm_100, tiny_imagenet.online_100,
        tiny_imagenet.oml_100, tiny_imagenet.gemcl_100)]
    assert [(s.n_tasks, s.n_classes) for s in made] == [(10, 100), (17, 85), (20, 100), (10, 100), (5, 84), (1, 20)]
    for stream in made:
        assert re.fullmatch(r"(split-)?tiny-imagenet-100(-[a-z]+)?-v1", stream.name)
        assert stream.defaults["source"] == "tiny-imagenet-100"


@real
def test_the_real_part_has_its_classes_and_pictures(tmp_path: Path) -> None:
    """What is to be decoded, and a few of the 30,000 pictures."""
    root = Path(os.environ["LIFELONG_DATA"]) / "tiny-imagenet-100"
    if not root.exists():
        pytest.skip("LIFELONG_DATA has no tiny-imagenet-100")
    what = tiny_imagenet._PART
    plan = photos._plan(what, root, sorted(map(str, root.iterdir())))
    assert plan.shape == (100, 300, 3, 64, 64)
    assert plan.about["parts"] == {"train": 64, "val": 16, "test": 20}
    told = dict(line.split("\t")[:2] for line in (root / "words.txt").read_text().splitlines())
    of = [part for part, count in plan.about["parts"].items() for _ in range(count)]
    assert {name.removeprefix("imagenet/"): part for name, part in zip(plan.about["classes"], of, strict=True)} == told
    jobs = [{**job, "rows": [i]} for i, job in enumerate(plan.fill.args[2][::3000])]
    out = np.zeros((len(jobs), 3, 64, 64), np.uint8)
    decoding.write(out, jobs, False, lambda count: None)
    with zipfile.ZipFile(root / "train.zip") as archive:
        first = Image.open(archive.open("train/n01443537/n01443537_0.JPEG")).convert("RGB")
    np.testing.assert_array_equal(out[0], np.asarray(first).transpose(2, 0, 1))
    assert out.std((1, 2, 3)).min() > 10
