"""Raw data is found where people have it, and decoded once."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lifelong.data import files as data


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user who has set nothing but the cache folder."""
    monkeypatch.delenv("LIFELONG_DATA", raising=False)
    monkeypatch.delenv("LIFELONG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_folder_is_the_argument_then_the_variable_then_the_cache(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.folder() == tmp_path / "cache/lifelong/data"
    monkeypatch.setenv("LIFELONG_DATA", "/somewhere")
    assert data.folder() == Path("/somewhere")
    assert data.folder("/elsewhere") == Path("/elsewhere")


def test_the_first_place_that_exists_is_found(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    (tmp_path / "c").touch()
    assert data.find("It", ["a", "b", "c"], tmp_path, source="nowhere") == tmp_path / "b"


def test_what_is_not_there_is_reported_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data.find("It", ["a", "b", "c", "d"], tmp_path, source="the library", download=lambda root: 1 / 0)
    assert str(caught.value) == (f"It is not in {tmp_path} (looked for a, b, c, ...); get it from the library, and "
                                 f"name its folder with the option data or with LIFELONG_DATA")


def test_only_the_default_folder_is_downloaded_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: Path) -> None:
        (root / "a").touch()

    assert data.find("It", ["a"], None, source="nowhere", download=download) == tmp_path / "cache/lifelong/data/a"
    for argument, variable in ((tmp_path, ""), (None, str(tmp_path))):
        monkeypatch.setenv("LIFELONG_DATA", variable)
        with pytest.raises(FileNotFoundError, match="It is not in"):
            data.find("It", ["a"], argument, source="nowhere", download=download)


def test_a_failed_download_says_why() -> None:
    def download(root: Path) -> None:
        raise OSError("no route to host")

    with pytest.raises(FileNotFoundError, match="downloading it failed: no route to host"):
        data.find("It", ["a"], None, source="nowhere", download=download)


def archive(path: Path, **files: bytes) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return zipfile.ZipFile(path)


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../../b", "..\\b", "C:/b"])
def test_an_archive_that_names_what_lies_outside_is_refused(tmp_path: Path, name: str) -> None:
    with archive(tmp_path / "x.zip", **{name: b"1"}) as opened, pytest.raises(ValueError, match="lies outside"):
        data.members(opened, 100)


def test_an_archive_is_measured_before_it_is_unpacked(tmp_path: Path) -> None:
    with archive(tmp_path / "x.zip", a=b"1" * 60, b=b"2" * 60) as opened:
        assert [member.filename for member in data.members(opened, 120)] == ["a", "b"]
        with pytest.raises(ValueError, match="would unpack to 120 bytes, more than the 119"):
            data.members(opened, 119)


class Decoder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> np.ndarray:
        self.asked += 1
        return np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_an_array_is_decoded_once_and_then_mapped(tmp_path: Path) -> None:
    decode = Decoder()
    first, second = data.decoded("a", "source", decode), data.decoded("a", "source", decode)
    assert decode.asked == 1
    assert isinstance(second, np.memmap)
    np.testing.assert_array_equal(first, decode())
    np.testing.assert_array_equal(second, decode())
    assert {path.name for path in (tmp_path / "cache/lifelong/arrays").iterdir()} == {"a.npy", "a.json"}


def test_writing_to_a_mapped_array_does_not_reach_the_file() -> None:
    data.decoded("a", "source", Decoder())[:] = 0
    assert data.decoded("a", "source", Decoder()).sum() == 66


def damage_array(home: Path) -> None:
    content = bytearray((home / "a.npy").read_bytes())
    content[-1] ^= 1
    (home / "a.npy").write_bytes(content)


def change_source(home: Path) -> None:
    (home / "a.json").write_text(json.dumps(json.loads((home / "a.json").read_text()) | {"source": "another"}))


@pytest.mark.parametrize("harm", [
    damage_array, change_source,
    lambda home: (home / "a.npy").write_bytes((home / "a.npy").read_bytes()[:-3]),
    lambda home: (home / "a.npy").write_bytes(b""),
    lambda home: (home / "a.npy").unlink(),
    lambda home: (home / "a.json").write_text("{"),
    lambda home: (home / "a.json").write_text("[]"),
    lambda home: (home / "a.json").write_bytes(b"\xff"),
    lambda home: (home / "a.json").unlink(),
    lambda home: np.save(home / "a.npy", np.array([{}]), allow_pickle=True),
])
def test_a_damaged_or_foreign_cache_entry_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       harm: object) -> None:
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path))
    decode = Decoder()
    data.decoded("a", "source", decode)
    assert callable(harm)
    harm(tmp_path)
    assert data.decoded("a", "source", decode).sum() == 66
    assert data.decoded("a", "source", decode).sum() == 66
    assert decode.asked == 2


def test_without_a_cache_folder_the_array_is_decoded_with_a_warning(tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="decoded again next time; point LIFELONG_CACHE at"):
        assert data.decoded("a", "source", Decoder()).sum() == 66


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setenv("LIFELONG_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="disk full"):
        data.decoded("a", "source", Decoder())
    assert list(tmp_path.iterdir()) == []


class Filler:
    """A plan that counts how often it is carried out, and waits for `go`."""

    def __init__(self) -> None:
        self.begun, self.go, self.times = threading.Event(), threading.Event(), 0

    def __call__(self) -> data.Plan:
        return data.Plan((3, 4), {"of": "numbers"}, self.fill)

    def fill(self, file: Path, offset: int) -> None:
        self.times += 1
        self.begun.set()
        assert self.go.wait(30)
        np.memmap(file, np.uint8, "r+", offset, (3, 4))[:] = np.arange(12).reshape(3, 4)


def test_who_needs_an_array_that_another_is_making_waits_and_takes_it(tmp_path: Path) -> None:
    plan, cache = Filler(), tmp_path / "cache/lifelong/arrays"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(data.filled, "a", "source", plan)
        assert plan.begun.wait(30)
        second = pool.submit(data.filled, "a", "source", plan)
        with pytest.raises(TimeoutError):
            second.result(0.5)
        assert len(list(cache.glob(".a.npy.*.tmp"))) == 1  # the one who waits does not take it for a leftover
        plan.go.set()
        for made in (first, second):
            array, about = made.result(30)
            np.testing.assert_array_equal(array, np.arange(12).reshape(3, 4))
            assert about == {"of": "numbers"}
    assert plan.times == 1
    assert {path.name for path in cache.iterdir()} == {"a.npy", "a.json", ".a.lock"}


def test_a_cache_that_cannot_be_locked_names_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "cache/lifelong/arrays/.a.lock").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot keep a in .*LIFELONG_CACHE"):
        data.filled("a", "source", Filler())


def test_a_fingerprint_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = data.fingerprint([path])
    assert data.fingerprint([path]) == before
    path.write_bytes(b"22")
    assert data.fingerprint([path]) != before
