"""Streams of mini-ImageNet, from small sets in every layout that people have it in."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from lifelong.streams import mini_imagenet
from PIL import Image

from lifelong.data.pictures import decoding, photos
from lifelong.data.pictures import workers as children
from lifelong.experiments.prepare import prepare
from lifelong.spec.run import Options

SIDE, EACH = 12, 6
SPLITS = {"train": ("n01532829", "n02074367", "n13133613"), "val": ("n01855672",), "test": ("n02110341", "n04522168")}
NAMES = [name for names in SPLITS.values() for name in names]
# Image i of class c.
PIXELS = np.random.default_rng(0).integers(0, 256, (6, EACH, SIDE, SIDE, 3), dtype=np.uint8)
EXPECTED = PIXELS.transpose(0, 1, 4, 2, 3)


def png(c: int, i: int, side: int = SIDE) -> bytes:
    """The picture, without loss."""
    file = io.BytesIO()
    Image.fromarray(PIXELS[c, i]).resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def every() -> list[tuple[str, int, str, int]]:
    """Split, class, its name, image."""
    return [(split, NAMES.index(name), name, i) for split, names in SPLITS.items() for name in names
            for i in range(EACH)]


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tables() -> dict[str, bytes]:
    """Ravi & Larochelle's: a folder of images, and for each split a table of file names and classes."""
    files = {f"images/{name}{i:08}.jpg": png(c, i) for _, c, name, i in every()}
    for split in SPLITS:
        rows = [f"{name}{i:08}.jpg,{name}\n" for own, _, name, i in every() if own == split]
        files[f"{split}.csv"] = ("filename,label\n" + "".join(rows)).encode()
    return files


def tables_of_folders() -> dict[str, bytes]:
    """The same with a folder for each class, in which alone a file's name is its own."""
    files = {f"images/{name}/{i}.jpg": png(c, i) for _, c, name, i in every()}
    for split in SPLITS:
        rows = [f"{name}/{i}.jpg,{name}\n" for own, _, name, i in every() if own == split]
        files[f"{split}.csv"] = ("filename,label\n" + "".join(rows)).encode()
    return files


def folders() -> dict[str, bytes]:
    # 2 comes before 10: files are not in the order of their letters.
    return {f"{split}/{name}/{name}_{9 + i}.JPEG": png(c, i) for split, c, name, i in every()}


def flat() -> dict[str, bytes]:
    return {f"data/{name}/{i}.png": png(c, i) for _, c, name, i in every()}


def by_image() -> dict[str, bytes]:
    """Every class in every split, as the hub has it: six images, and one to spare."""
    places = {0: "train", 1: "train", 2: "train", 3: "train", 4: "val", 5: "val"}
    files = {f"{places[i]}/{name}/{i}.png": png(c, i) for _, c, name, i in every()}
    return files | {f"test/{name}/0.png": png(c, 0) for c, name in enumerate(NAMES)}


def cached(protocol: int = 4) -> dict[str, bytes]:
    """A pickle for each split: all images in one array, and the places of each class in it."""
    files = {}
    for split, names in SPLITS.items():
        own = [NAMES.index(name) for name in names]
        files[f"mini-imagenet-cache-{split}.pkl"] = pickle.dumps({
            "image_data": PIXELS[own].reshape(-1, SIDE, SIDE, 3),
            "class_dict": {name: list(range(EACH * k, EACH * (k + 1))) for k, name in enumerate(names)}}, protocol)
    return files


def labelled() -> dict[str, bytes]:
    """Numbers in place of names, images apart, and files of further images that are no part of it."""
    files = {}
    for split, names in SPLITS.items():
        own = [(c, i) for s, c, _, i in every() if s == split]
        files[f"miniImageNet_category_split_{split if split != 'train' else 'train_phase_train'}.pickle"] = \
            pickle.dumps({"data": [PIXELS[c, i] for c, i in own], "labels": [NAMES.index(n) for n in names
                                                                            for _ in range(EACH)]}, 2)
    return files | {"miniImageNet_category_split_train_phase_val.pickle": b"not read"}


def whole() -> dict[str, bytes]:
    return {"miniImageNet_full.pickle": pickle.dumps({
        "images": PIXELS.reshape(-1, SIDE, SIDE, 3), "labels": np.array([name for _, _, name, _ in every()])}, 5)}


def whole_by_split() -> dict[str, bytes]:
    """One pickle with a dict for each split, the second of which some call validation."""
    splits = {split: [(c, i, name) for own, c, name, i in every() if own == split] for split in SPLITS}
    return {"mini.pkl": pickle.dumps({split if split != "val" else "validation": {
        "images": np.stack([PIXELS[c, i] for c, i, _ in own]), "labels": [name for *_, name in own]}
        for split, own in splits.items()}, 4)}


def split_by_image() -> dict[str, bytes]:
    """Two pickles with all classes in each, numbered, as the family of GPM has them."""
    files = {}
    for split, own in (("train", range(5)), ("test", range(5, EACH))):
        files[f"{split}.pkl"] = pickle.dumps({"images": [PIXELS[c, i] for i in own for c in range(6)],
                                              "labels": [c for _ in own for c in range(6)]}, 4)
    return files


def parquet(names: bool = True, kind: str = "label") -> dict[str, bytes]:
    """The hub's: every class in every split, named in the file's metadata; six images and one to spare."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    sorted_, files = sorted(NAMES), {}
    about = {"info": {"features": {"label": {"names": sorted_, "_type": "ClassLabel"}}}}
    for split, own in (("train", range(4)), ("validation", range(4, 6)), ("test", range(1))):
        rows = [(name, png(NAMES.index(name), i)) for i in own for name in sorted_]
        table = pa.table({
            "image": [{"bytes": content, "path": None} for _, content in rows],
            "label": [sorted_.index(name) if kind == "label" else name for name, _ in rows]})
        file = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)} if names else {}), file)
        files[f"data/{split}-00000-of-00001.parquet"] = file.getvalue()
    return files


def leftovers() -> dict[str, bytes]:
    """Folders with what notebooks, file managers and archivers leave there."""
    first = png(0, 0)
    return folders() | {
        "train/.ipynb_checkpoints/a-checkpoint.png": first, "train/@eaDir/a.png": first, "__MACOSX/train/n1/a.png": first,
        f"train/{NAMES[0]}/.ipynb_checkpoints/{NAMES[0]}_9-checkpoint.JPEG": first, f"train/{NAMES[0]}/._a.JPEG": first,
        "train/.DS_Store": b"", f"val/{NAMES[3]}/Thumbs.db": b"", "desktop.ini": b""}


def spreadsheets() -> dict[str, bytes]:
    """Tables as spreadsheets write them: a byte-order mark, semicolons, quotes, spaces, and lines that end in two bytes."""
    def saved(table: bytes) -> bytes:
        rows = [line.split(",") for line in table.decode().splitlines()]
        return "\r\n".join(f'"{name}" ;  {label} ' for name, label in rows).encode("utf-8-sig")

    return {name: saved(content) if name.endswith(".csv") else content for name, content in tables().items()}


LAYOUTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "leftovers of tools": leftovers, "tables of a spreadsheet": spreadsheets,
    "tables": tables, "tables of folders": tables_of_folders, "folders": folders, "folders without splits": flat, "folders by image": by_image,
    "a pickle for each split": cached, "numbered pickles": labelled, "one pickle": whole, "one pickle by split": whole_by_split,
    "pickles by image": split_by_image, "parquet": parquet,
    "parquet without names": lambda: parquet(names=False), "parquet of names": lambda: parquet(False, "name"),
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Six classes of six images pass for mini-ImageNet, with a cache of their own."""
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini_imagenet, "_WHAT", replace(
        mini_imagenet._WHAT, side=SIDE, images=EACH, more=(EACH + 1,),
        parts={split: len(names) for split, names in SPLITS.items()},
        synsets={name: split for split, names in SPLITS.items() for name in names}))


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read in this process, which a child takes a third of a second to begin with."""
    def decode(title: str, file: Path, offset: int, shape: tuple[int, ...], jobs: Any, resize: bool) -> None:
        decoding.write(np.memmap(file, np.uint8, "r+", offset, shape), jobs, resize, lambda count: None)

    monkeypatch.setattr(children, "describe", lambda title, places, kind: decoding.describe(places, kind))
    monkeypatch.setattr(children, "decode", decode)


def split(root: Path, **options: Any) -> Any:
    return mini_imagenet.split([0, 1], data=root, **{"tasks": 3, "train": 4, "test": 2} | options)


def kept(tmp_path: Path) -> set[str]:
    """Names of the files in the cache, but for the one that is locked while another is made."""
    return {path.name for path in (tmp_path / "cache").glob("*") if path.suffix != ".lock"}


def nothing_kept(tmp_path: Path) -> bool:
    return not kept(tmp_path)


@pytest.mark.parametrize(("mode", "made", "expected"), [
    ("I;16", lambda grey: grey, lambda grey: np.stack([(grey + 128.0) // 257] * 3)),
    ("L", lambda grey: (grey // 257).astype(np.uint8), lambda grey: np.stack([grey // 257] * 3)),
    ("P", lambda grey: (grey // 257).astype(np.uint8), lambda grey: np.stack([grey // 257] * 3)),
    ("LA", lambda grey: np.stack([grey // 257, grey % 200], -1).astype(np.uint8), lambda grey: np.stack([grey // 257] * 3)),
])
def test_pictures_of_every_depth_are_the_same_picture_in_eight_bits(mode: str, made: Any, expected: Any) -> None:
    grey, file = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8), io.BytesIO()
    image = Image.fromarray(made(grey))
    if mode == "P":
        image.putpalette([level for level in range(256) for _ in range(3)])
    assert image.mode == mode
    image.save(file, "PNG")
    np.testing.assert_array_equal(decoding.picture(memoryview(file.getvalue()), 8, False, "a.png"), expected(grey))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_to_the_same_array(tmp_path: Path, layout: str, inside: None) -> None:
    put(tmp_path / "mini-imagenet", LAYOUTS[layout]())
    stream = split(tmp_path)
    np.testing.assert_array_equal(stream.x.view(6, EACH, 3, SIDE, SIDE), EXPECTED)
    if layout not in ("numbered pickles", "pickles by image"):
        assert stream.content == {f"imagenet/{name}" for name in NAMES}
    if layout != "pickles by image":
        assert mini_imagenet.source(data=tmp_path, part="test").rows.shape == (1, 2, EACH)


@pytest.mark.parametrize(("layout", "where"), [
    ("tables", "miniImageNet.zip"), ("tables", "."), ("folders", "miniImagenet.zip"), ("folders", "mini_imagenet/all.zip"), ("leftovers of tools", "mini_imagenet/all.zip"),
    ("a pickle for each split", "mini_imagenet/all.zip"), ("parquet", "MiniImageNet.zip")])
def test_it_is_found_in_zips_and_in_the_folder_itself(tmp_path: Path, layout: str, where: str, inside: None) -> None:
    root = tmp_path / "data"
    files = LAYOUTS[layout]()
    if where == ".":
        put(root, files)
    elif layout == "folders" and "/" in where:  # a zip for each split
        for part in SPLITS:
            pack(root / f"mini_imagenet/{part}.zip", {k: v for k, v in files.items() if k.startswith(part)})
    else:
        pack(root / where, {f"mini-imagenet/{k}": v for k, v in files.items()} | {"__MACOSX/._n01532829.jpg": b"x"})
    np.testing.assert_array_equal(split(root).x.view(6, EACH, 3, SIDE, SIDE), EXPECTED)


def test_pictures_of_other_sizes_are_squeezed_with_lanczos_filter(tmp_path: Path) -> None:
    files = folders()
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 31), dtype=np.uint8))  # grey, upright
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    put(tmp_path / "mini-imagenet", files | {"train/n01532829/n01532829_9.JPEG": buffer.getvalue()})
    expected = Image.open(buffer).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(split(tmp_path).x[0].permute(1, 2, 0), np.array(expected))


def test_the_parts_are_ravi_and_larochelles_whatever_a_file_says(tmp_path: Path, inside: None) -> None:
    # Some of the pickles that circulate were made with val and test exchanged.
    files = cached()
    files["mini-imagenet-cache-val.pkl"], files["mini-imagenet-cache-test.pkl"] = \
        files["mini-imagenet-cache-test.pkl"], files["mini-imagenet-cache-val.pkl"]
    put(tmp_path / "mini-imagenet", files)
    assert mini_imagenet.source(data=tmp_path, part="test").content == {f"imagenet/{n}" for n in SPLITS["test"]}


def test_numbered_classes_have_parts_by_their_files_alone(tmp_path: Path, inside: None) -> None:
    put(tmp_path / "mini-imagenet", labelled())
    source = mini_imagenet.source(data=tmp_path, part="val")
    assert source.content == {"mini-imagenet/val/3"}
    np.testing.assert_array_equal(source.x, EXPECTED[3])
    (tmp_path / "other").mkdir()
    put(tmp_path / "other/mini-imagenet", {"all.pkl": pickle.dumps(
        {"images": PIXELS.reshape(-1, SIDE, SIDE, 3), "labels": [c for _, c, _, _ in every()]})})
    assert split(tmp_path / "other").content == {f"mini-imagenet/all/{c}" for c in range(6)}
    with pytest.raises(ValueError, match="the classes are only numbered.*unknown which of them"):
        mini_imagenet.source(data=tmp_path / "other")


@pytest.mark.parametrize("layout", ["a pickle for each split", "parquet"])
def test_tables_are_read_by_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    put(tmp_path / "mini-imagenet", LAYOUTS[layout]())
    monkeypatch.setattr(decoding, "_held", None)
    monkeypatch.setattr(decoding, "_parquet", None)
    np.testing.assert_array_equal(split(tmp_path).x.view(6, EACH, 3, SIDE, SIDE), EXPECTED)


def test_it_is_decoded_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mini-imagenet", folders())
    first = split(tmp_path).x.clone()
    with monkeypatch.context() as patch:
        patch.setattr(photos, "_plan", None)
        assert torch.equal(split(tmp_path).x, first)
    put(tmp_path / "mini-imagenet", {"train/n01532829/n01532829_9.JPEG": png(5, 5)})
    np.testing.assert_array_equal(split(tmp_path).x[0], EXPECTED[5, 5])
    assert kept(tmp_path) == {"mini-imagenet-12.npy", "mini-imagenet-12.json"}


def test_processes_decode_to_the_same_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "FEW", 12)
    monkeypatch.setattr(children, "_cores", lambda: 2)
    root = put(tmp_path / "mini-imagenet", folders())
    np.testing.assert_array_equal(split(tmp_path).x.view(6, EACH, 3, SIDE, SIDE), EXPECTED)
    (root / "test/n04522168/n04522168_14.JPEG").write_bytes(png(0, 0)[:90])
    with pytest.raises(ValueError, match=r"n04522168_14.JPEG is damaged .*; download it again$"):
        split(tmp_path)
    assert kept(tmp_path) == {"mini-imagenet-12.npy", "mini-imagenet-12.json"}  # the earlier ones


def test_a_process_that_takes_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mini-imagenet", whole())
    bounded = children._bounded
    monkeypatch.setattr(children, "_bounded", lambda *given: bounded(*given) | {"memory": 1000})
    with pytest.raises(ValueError, match=r"full.pickle cannot be read: .* from a source that you trust"):
        split(tmp_path)
    assert nothing_kept(tmp_path)


# ---- what is wrong


def claim(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it is so large."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")


def without(word: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {name: content for name, content in files.items() if word not in name}


FIRST = "train/n01532829/n01532829_9.JPEG"
WRONG: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "nothing": (folders, lambda files: {"notes.txt": b"", "model.pt": b""},
                "is not a known layout of mini-ImageNet: it has 2 files (.pt, .txt), but should have train.csv"),
    "a missing class": (folders, without("n13133613"),
                        "mini-ImageNet has 6 classes (3 train, 1 val, 2 test), but there are 5 (2 train, 1 val, 2 "
                        "test); n13133613 is missing; get it from https"),
    "a missing image": (folders, without("n13133613_10"), "class n13133613 of mini-ImageNet should have 6 images, but "
                        "has 5 in train"),
    "a class in two parts": (folders, lambda files: files | {name.replace("train", "test"): content for name, content
                             in files.items() if "n01532829" in name}, "has 6 in train and 6 in test"),
    "a class of another set": (folders, lambda files: files | {"train/n00000001/1.jpg": b""},
                               "'n00000001' is not one of the 6 classes of mini-ImageNet"),
    "a corrupt picture": (folders, lambda files: files | {FIRST: b"\xff\xd8" + bytes(50)},
                          f"{FIRST} is damaged (it is not a JPEG or PNG); download it again"),
    "a picture cut short": (folders, lambda files: files | {FIRST: files[FIRST][:100]}, f"{FIRST} is damaged"),
    "a picture of many pixels": (folders, lambda files: files | {FIRST: claim(30000, 30000)},
                                 f"{FIRST} claims to have more than 50,000,000 pixels"),
    "a picture of somewhat too many": (folders, lambda files: files | {FIRST: claim(8000, 8000)},
                                       f"{FIRST} claims to have more than 50,000,000 pixels"),
    "absent files": (tables, lambda files: {name: content for name, content in files.items()
                                            if "n01532829" not in name}, "names n0153282900000000.jpg, which is not in"),
    "names that are several files'": (tables_of_folders, lambda files: files | {
        "train.csv": files["train.csv"].replace(b"n01532829/", b"")}, "train.csv names 0.jpg, but "),
    "a picture in two tables": (tables, lambda files: files | {"test.csv": files["test.csv"] + files["train.csv"]},
                                "but it was named before"),
    "a table of noise": (tables, lambda files: files | {"val.csv": b"\xff\xfe\x00"}, "val.csv is not a table"),
    "a pickle that runs code": (cached, lambda files: files | {
        "mini-imagenet-cache-train.pkl": b"cos\nsystem\n(S'echo ran'\ntR."}, "cache-train.pkl is not read: at byte 11: "
        "it names os.system, which images and labels do not need; download it again from a source that you trust"),
    "a Parquet file cut short": (parquet, lambda files: {name: content[:-20] for name, content in files.items()},
                                 "test-00000-of-00001.parquet is damaged"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told_and_nothing_is_kept(tmp_path: Path, what: str) -> None:
    make, harm, words = WRONG[what]
    put(tmp_path / "mini-imagenet", harm(make()))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        split(tmp_path)
    assert "\n" not in str(caught.value)
    assert nothing_kept(tmp_path)


def climb(path: Path, files: dict[str, bytes]) -> None:
    pack(path, files | {"../../evil.jpg": b""})


def bomb(path: Path, files: dict[str, bytes]) -> None:
    pack(path, files | {FIRST: bytes(2_000_000)})


def lie(path: Path, files: dict[str, bytes]) -> None:
    """Sizes that say less than there is."""
    content = bytes(500_000)
    pack(path, files | {FIRST: content})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", len(content)), struct.pack("<I", 10)))


def cut(path: Path, files: dict[str, bytes]) -> None:
    path.write_bytes(pack(path, files).read_bytes()[:-30])


@pytest.mark.parametrize(("harm", "words"), [
    (climb, "names '../../evil.jpg', which lies outside"),
    (bomb, "would unpack to more than the limit of 1,000,000 bytes"),
    (lie, f"{FIRST} cannot be read"),
    (cut, "is damaged (File is not a zip file); download it again"),
])
def test_a_hostile_archive_is_refused_before_it_is_unpacked(tmp_path: Path, harm: Any, words: str,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PICTURE", 1_000_000)
    harm(tmp_path / "mini-imagenet.zip", folders())
    with pytest.raises(ValueError, match=re.escape(words)):
        split(tmp_path)
    assert nothing_kept(tmp_path)


def test_too_little_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "mini-imagenet", folders())
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage(1, 1, 10_000_000))
    with pytest.raises(OSError, match="mini-imagenet-12 needs 16,792,768 bytes in the cache folder .*, where 10,000,000"
                                      " are free: make room, or point LIFELONG_CACHE at another folder"):
        split(tmp_path)
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_disk_that_fills_up_at_any_moment_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    put(tmp_path / "mini-imagenet", folders())
    calls = []

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls.append(real)
            if len(calls) == nth:
                raise OSError(28, "No space left on device")
            return real(*given, **named)
        return call

    with monkeypatch.context() as patch:
        for name in ("posix_fallocate", "fsync", "replace"):
            patch.setattr(os, name, failing(getattr(os, name)))
        if nth == 8:  # there are seven
            split(tmp_path)
            assert len(calls) == 7
        else:
            with pytest.raises(OSError, match="cannot keep mini-imagenet-12 in .*No space left .*LIFELONG_CACHE"):
                split(tmp_path)
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    np.testing.assert_array_equal(split(tmp_path).x.view(6, EACH, 3, SIDE, SIDE), EXPECTED)


def test_interrupted_decoding_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    put(tmp_path / "mini-imagenet", folders())
    with monkeypatch.context() as patch:
        patch.setattr(children, "decode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            split(tmp_path)
    assert nothing_kept(tmp_path)
    # What a process that was killed could not remove.
    (tmp_path / "cache/.mini-imagenet-12.npy.abc.tmp").write_bytes(bytes(100))
    split(tmp_path)
    assert kept(tmp_path) == {"mini-imagenet-12.npy", "mini-imagenet-12.json"}


def test_without_pyarrow_the_way_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = (str(put(tmp_path, parquet()) / "data/test-00000-of-00001.parquet"), None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="is a Parquet file, which needs pyarrow: pip install pyarrow"):
        decoding.describe([place], "parquet")


def test_the_command_line_says_one_sentence(tmp_path: Path, lifelong: Any) -> None:
    said = lifelong("run", "split-mini-imagenet", "finetune", "--data", tmp_path)
    refused(said, "mini-ImageNet is not in", "huggingface.co/datasets/timm/mini-imagenet")
    put(tmp_path / "mini-imagenet", folders() | {FIRST: b"no picture"})
    asked = ("run", "split-mini-imagenet(tasks=3, train=4, test=2)", "finetune", "--data", tmp_path)
    refused(lifelong(*asked), FIRST, "is damaged")
    shutil.rmtree(tmp_path / "mini-imagenet")
    put(tmp_path / "mini-imagenet", {"mini-imagenet-cache-train.pkl": b"cos\nsystem\n(S'echo ran'\ntR."})
    refused(lifelong(*asked), "cache-train.pkl is not read", "os.system")


# ---- the streams


def classes(stream: Any, seed: int) -> list[list[int]]:
    """For each task of a seed, the classes it trains on."""
    return [sorted(set(stream.y[rows[rows >= 0]].tolist())) for rows in stream.train[seed]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "mini-imagenet", flat())
    return tmp_path


def test_a_class_trains_on_its_first_images_or_on_drawn_ones(root: Path) -> None:
    stream = split(root)
    assert (stream.name, stream.shape, stream.scale) == ("split-mini-imagenet-v1", (3, SIDE, SIDE), 1 / 255)
    assert set((stream.train % EACH).flatten().tolist()) == {0, 1, 2, 3}
    assert set((stream.test % EACH).flatten().tolist()) == {4, 5}
    drawn = split(root, examples="random")
    assert len({tuple(sorted((rows % EACH).tolist())) for rows in drawn.test.flatten(0, 1)}) > 2
    assert classes(stream, 0) == classes(drawn, 0) != classes(stream, 1)


def test_a_stream_is_made_again_from_its_options(root: Path) -> None:
    for make, options in ((mini_imagenet.split, {"tasks": 2, "train": 3, "test": 1, "examples": "random",
                                                 "scenario": "domain", "boundaries": False}),
                          (mini_imagenet.oml, {"lengths": (1, 2), "train": 2, "test": 3, "units": 9}),
                          (mini_imagenet.gemcl, {"lengths": (2,), "train": 2, "test": 2})):
        stream = make([0, 3], data=root, **options)
        again = make([3], data=root, **stream.options)
        for tensor in ("train", "test", "classes", "label"):
            old, new = getattr(stream, tensor), getattr(again, tensor)
            assert (old is None and new is None) or torch.equal(new[0], old[1])


def hundred() -> photos.Photos:
    """A hundred classes of six images of one pixel."""
    return photos.Photos(torch.zeros(100, EACH, 3, 1, 1, dtype=torch.uint8), [f"imagenet/{c}" for c in range(100)],
                         {"train": range(64), "val": range(64, 80), "test": range(80, 100)})


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini_imagenet, "load", lambda what, data: hundred())
    monkeypatch.setattr(mini_imagenet, "TRAINED", 4)
    monkeypatch.setattr(mini_imagenet, "TESTED", 2)


def test_agem_chooses_on_three_tasks_and_reports_on_seventeen_others(large: None) -> None:
    chosen, reported, both = (mini_imagenet.agem([0, 1], part=part) for part in ("validation", "evaluation", "all"))
    assert [s.n_tasks for s in (chosen, reported, both)] == [3, 17, 20]
    assert {s.scenario for s in (chosen, reported, both)} == {"task"}
    assert not chosen.content & reported.content
    assert chosen.content | reported.content == both.content
    assert all(len(own) == 5 for own in classes(reported, 0))
    assert classes(reported, 0) != classes(reported, 1)
    assert (reported.defaults["epochs"], reported.defaults["batch_size"]) == (1, 10)
    assert (reported.mean, reported.augment) == ((0.485, 0.456, 0.406), "none")


def test_gpm_has_all_twenty_tasks_and_the_online_one_two_lengths(large: None) -> None:
    gpm = mini_imagenet.gpm([0])
    assert (gpm.n_tasks, gpm.scenario, gpm.defaults["epochs"]) == (20, "task", 10)
    for tasks in (10, 20):
        online = mini_imagenet.online([0, 1], tasks=tasks)
        assert (online.n_tasks, online.scenario, online.n_classes) == (tasks, "class", 100)
        assert (online.mean, online.augment) == (None, "none")
        assert len({tuple((rows % EACH).tolist()) for rows in online.test[:, 0]}) == 2  # drawn


def test_the_streams_of_new_classes_have_those_of_the_test_part(large: None) -> None:
    oml = mini_imagenet.oml([0, 1], train=2, test=3)
    assert (oml.n_tasks, oml.n_classes, oml.spare, oml.ordered, oml.retention) == (5, 84, 64, True, True)
    assert oml.content == {f"imagenet/{c}" for c in range(80, 100)}
    assert len(oml.y) == 20 * EACH  # the other images are not carried along
    assert [(rows >= 0).sum() for rows in oml.train[0]] == [4, 6, 10, 10, 10]
    assert not torch.equal(mini_imagenet.oml([0, 1], train=2, test=3, search=True).train, oml.train)
    gemcl = mini_imagenet.gemcl([0], train=2, test=4)
    assert (gemcl.n_classes, gemcl.spare, len(gemcl.train[0, 0])) == (20, 0, 40)
    assert mini_imagenet.oml([0], train=2, test=3, part="val", lengths=(16,)).content == {
        f"imagenet/{c}" for c in range(64, 80)}
    assert not mini_imagenet.source().content & oml.content


@pytest.mark.parametrize(("make", "options", "words"), [
    (mini_imagenet.split, {"train": 500}, "train=500 and test=100 need 600 images of each class, but there are 6"),
    (mini_imagenet.split, {"train": 4, "test": 2, "tasks": 7}, "100 classes do not divide into 7 tasks"),
    (mini_imagenet.split, {"train": 4, "test": 2, "examples": "some"}, "examples must be one of 'fixed', 'random'; got 'some'"),
    (mini_imagenet.split, {"train": 0}, "train must be a whole number of 1 or more"),
    (mini_imagenet.agem, {"part": "some"}, "part must be one of 'evaluation', 'validation', 'all'; got 'some'"),
    (mini_imagenet.oml, {"train": 2, "test": 2, "lengths": (2, 21)}, "lengths ask for 21 classes, but there are 20"),
    (mini_imagenet.oml, {"part": "both"}, "part must be one of 'train', 'val', 'test'; got 'both'"),
])
def test_a_request_that_cannot_be_met_is_refused(large: None, make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="^(split-)?mini-imagenet(-[a-z]+)?-v1: .*" + re.escape(words)):
        make([0], **options)


def test_no_start_is_used_on_classes_that_it_was_learned_on(root: Path, lifelong: Any) -> None:
    said = lifelong("run", "mini-imagenet-gemcl(lengths=(2,), train=2, test=2)",
                    "protonet(source=\"mini-imagenet(part='test')\", steps=1, way=2, shots=1, queries=1, "
                    "model='conv4(width=2)')", "--data", root)
    refused(said, "was learned on 2 of the classes that mini-imagenet-gemcl-v1 tests on", "imagenet/n02110341")


def test_no_start_is_used_where_pixels_are_not_as_it_knows_them(root: Path) -> None:
    start = "supervised(source='glyphs(classes=2)', steps=1, model='conv4(width=2)')"
    stream = replace(split(root), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match="supervised.* was learned on pixels as they are, and split-mini-imagenet-v1 "
                                         "normalises their channels: use a stream that does not"):
        prepare(stream, [start], Options(seeds=2))
