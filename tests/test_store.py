"""A store keeps what was saved, notices what was damaged, and loses nothing when a write fails."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from lifelong import store
from lifelong.store import checkpoints, records
from lifelong.store.checkpoints import Busy, Workshop
from lifelong.store.files import StoreError
from lifelong.store.records import Run

SPEC = {"format": 1, "stream": "toy-v1", "strategy": "er(capacity=3) + ewc", "seeds": 2, "steps": None}


def a_run(**spec: Any) -> Run:
    accuracy = np.arange(12, dtype=np.float64).reshape(2, 3, 2) / 12
    accuracy[1, 2] = np.nan
    about = {"status": "done", "note": "", "seconds": 1.5, "device": "cpu"}
    return Run(SPEC | spec, accuracy, about, {"loss": np.full((2, 2), np.inf), "curve_step": np.array([5, 10])})


def test_a_run_comes_back_as_it_was_saved(tmp_path):
    place = store.save(tmp_path, a_run())
    run = store.load(place)
    assert run.spec == SPEC
    assert run.accuracy.dtype == np.float64
    np.testing.assert_array_equal(run.accuracy, a_run().accuracy)
    assert {k: v.tolist() for k, v in run.logs.items()} == {"loss": [[np.inf] * 2] * 2, "curve_step": [5, 10]}
    assert {k: run.about[k] for k in a_run().about} == a_run().about
    assert run.about["folder"] == str(place)
    found = store.find(tmp_path, SPEC)
    assert found is not None and found.spec == SPEC
    assert store.find(tmp_path, SPEC | {"seeds": 3}) is None


def test_a_folder_holds_two_files_that_anything_can_read(tmp_path):
    place = store.save(tmp_path, a_run())
    assert sorted(p.name for p in place.iterdir()) == ["accuracy.npz", "run.json"]
    assert json.loads((place / "run.json").read_text())["spec"] == SPEC
    assert np.load(place / "accuracy.npz")["accuracy"].shape == (2, 3, 2)
    assert place.name.startswith("toy-v1-er-capacity-3-ewc--")


def test_a_digest_does_not_depend_on_the_order_of_keys():
    nested = SPEC | {"hyper": {"a": 1, "b": [{"c": 2, "d": 3.5}]}}
    other = dict(reversed(list((SPEC | {"hyper": {"b": [{"d": 3.5, "c": 2}], "a": 1}}).items())))
    assert store.digest(nested) == store.digest(other)
    assert len({store.digest(SPEC | {"seeds": n}) for n in range(20)}) == 20
    assert re.fullmatch("[0-9a-f]{16}", store.digest(SPEC))


def test_a_spec_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError):
        store.digest({"strength": float("nan")})


def test_saving_again_replaces_and_clears_an_earlier_error(tmp_path):
    place = store.save(tmp_path, a_run())
    store.write(place / "error.txt", b"it failed")
    other = a_run()
    other.accuracy[:] = 0.25
    assert store.save(tmp_path, other) == place
    assert (store.load(place).accuracy == 0.25).all()
    assert not (place / "error.txt").exists()


# ---- damage


def test_every_byte_of_a_record_is_covered(tmp_path):
    place = store.save(tmp_path, a_run(format=2))
    file, whole = place / "run.json", store.load(place)
    content, noticed = bytearray(file.read_bytes()), 0
    for at in range(len(content)):
        content[at] ^= 1
        file.write_bytes(content)
        try:
            run = store.load(place)
            assert run.spec == whole.spec and run.about == whole.about, f"the byte {at} is not covered"
        except StoreError:
            noticed += 1
        content[at] ^= 1
    assert noticed > len(content) / 2  # the others are white space


def test_a_noted_run_is_whole(tmp_path):
    run = store.load(store.save(tmp_path, a_run(format=2)))
    assert records.note(run, choice={"by": "tune"}).about["choice"] == {"by": "tune"}


def truncated(place: Path) -> None:
    file = place / "accuracy.npz"
    file.write_bytes(file.read_bytes()[:-20])


def flipped(place: Path) -> None:
    file = place / "accuracy.npz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        record = json.loads((place / "run.json").read_text())
        change(record)
        (place / "run.json").write_text(json.dumps(record))
    return edit


def with_arrays(**arrays: Any) -> Callable[[Path], None]:
    """Other arrays, with the digest that belongs to them: whoever damaged this one was thorough."""
    def replace(place: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        sealed(place, buffer.getvalue())
    return replace


def sealed(place: Path, data: bytes) -> None:
    (place / "accuracy.npz").write_bytes(data)
    edited(lambda r: r["about"].update(sha256=hashlib.sha256(data).hexdigest()))(place)


def lying_header(place: Path) -> None:
    """An array that claims a terabyte in an archive of a few bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**37, 1, 1)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("accuracy.npy", header.getvalue() + bytes(64))
    sealed(place, buffer.getvalue())


def bad_deflate(place: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, accuracy=np.random.default_rng(0).random((2, 3, 2)))
    data = bytearray(buffer.getvalue())
    start = data.index(b"accuracy.npy") + len(b"accuracy.npy") + 20
    data[start:start + 40] = b"\xff" * 40
    sealed(place, bytes(data))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "accuracy truncated": truncated,
    "a byte of accuracy flipped": flipped,
    "accuracy empty": lambda p: (p / "accuracy.npz").write_bytes(b""),
    "accuracy missing": lambda p: (p / "accuracy.npz").unlink(),
    "accuracy a folder": lambda p: ((p / "accuracy.npz").unlink(), (p / "accuracy.npz").mkdir()),
    "run.json truncated": lambda p: (p / "run.json").write_bytes((p / "run.json").read_bytes()[:-9]),
    "run.json empty": lambda p: (p / "run.json").write_bytes(b""),
    "run.json not text": lambda p: (p / "run.json").write_bytes(b"\xff\xfe\x00"),
    "run.json a list": lambda p: (p / "run.json").write_text("[1]"),
    "run.json of nothing": lambda p: (p / "run.json").write_text("{}"),
    "run.json nested deeply": lambda p: (p / "run.json").write_text("[" * 100_000),
    "run.json a folder": lambda p: ((p / "run.json").unlink(), (p / "run.json").mkdir()),
    "another spec": edited(lambda r: r["spec"].update(seeds=7)),
    "a spec that is not JSON": edited(lambda r: r["spec"].update(steps=float("nan"))),
    "a spec that is a list": edited(lambda r: r.update(spec=[1])),
    "another digest": edited(lambda r: r["about"].update(sha256="0" * 64)),
    "no digest": edited(lambda r: r["about"].pop("sha256")),
    "no status": edited(lambda r: r["about"].pop("status")),
    "another run's name": lambda p: p.rename(p.with_name(p.name[:-16] + "0123456789abcdef")),
    "accuracy of another shape": with_arrays(accuracy=np.zeros((2, 3, 3))),
    "accuracy of two axes": with_arrays(accuracy=np.zeros((3, 2))),
    "accuracy of words": with_arrays(accuracy=np.full((2, 3, 2), "high")),
    "no accuracy in it": with_arrays(loss=np.zeros(3)),
    "a header that lies": lying_header,
    "deflate that is damaged": bad_deflate,
    "not an archive": lambda p: sealed(p, b"hello"),
    "a pickle in it": lambda p: sealed(p, pickled()),
}


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, accuracy=np.array([[[print]]], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_run_is_named_skipped_and_left_as_it_is(kind, tmp_path):
    good = store.save(tmp_path, a_run(seeds=99))
    store.save(tmp_path, a_run())
    bad = next(p for p in tmp_path.iterdir() if p != good)
    DAMAGE[kind](bad)
    bad = next(p for p in tmp_path.iterdir() if p != good)
    before = {p.name: p.read_bytes() for p in bad.iterdir() if p.is_file()}
    found, problems = store.runs(tmp_path)
    assert [run.spec["seeds"] for run in found] == [99]
    (sentence,) = problems
    assert str(bad) in sentence and "\n" not in sentence
    assert before == {p.name: p.read_bytes() for p in bad.iterdir() if p.is_file()}


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    place = store.save(tmp_path, a_run())
    monkeypatch.setattr(records, "LARGEST", 100)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(StoreError, match="unpacks to more than"):
        store.load(place)
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    found, (sentence,) = store.runs(tmp_path)
    assert found == [] and str(place) in sentence
    assert before == {p.name: p.read_bytes() for p in place.iterdir()}


def test_what_is_not_a_run_is_no_ones_business(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "latest").mkdir()
    (tmp_path / "toy--0123456789abcdef").mkdir()  # begun, and failed: an error.txt at most
    assert store.runs(tmp_path) == ([], [])
    assert store.runs(tmp_path / "nowhere") == ([], [])


# ---- writes that fail


def failing(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    if where == "write":
        real = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            handle = real(file, mode, *args, **more)
            if "x" in mode:
                handle = type("Full", (), {"write": fail, "__enter__": lambda self: self, "__exit__":
                                           lambda self, *_: handle_close(), "flush": fail})()
            return handle

        def handle_close() -> None:
            return None
        monkeypatch.setattr(builtins, "open", opened)
    elif where == "open":
        real_open = builtins.open
        monkeypatch.setattr(builtins, "open", lambda file, mode="r", *a, **k: fail() if "x" in mode else
                            real_open(file, mode, *a, **k))
    else:
        monkeypatch.setattr(os, where, fail)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_a_write_that_fails_keeps_the_old_file_and_says_where(where, number, tmp_path, monkeypatch):
    file = tmp_path / "run.json"
    store.write(file, b"old")
    with monkeypatch.context() as patch:
        failing(patch, where, number)
        with pytest.raises(StoreError) as error:
            store.write(file, b"new and longer")
    assert str(file) in str(error.value) and os.strerror(number) in str(error.value)
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_every_failing_write_of_a_save_leaves_the_old_run_or_the_new_one(tmp_path, monkeypatch):
    old, new = a_run(), a_run()
    new.accuracy[:] = 0.5
    real, calls = os.fsync, [0]
    for nth in range(3):  # two files and their folder
        place = store.save(tmp_path, old)

        def sometimes(handle: int, nth: int = nth) -> None:
            calls[0] += 1
            if calls[0] > nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sometimes)
            with pytest.raises(StoreError):
                store.save(tmp_path, new)
        accuracy = store.load(place).accuracy  # damaged would raise
        assert any(np.array_equal(accuracy, run.accuracy, equal_nan=True) for run in (old, new))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("nth", [0, 1])
@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_save_that_fails_anywhere_never_leaves_a_damaged_run(call, nth, earlier, tmp_path, monkeypatch):
    old, new = a_run(), a_run()
    new.accuracy[:] = 0.5
    if earlier:
        store.save(tmp_path, old)
    real, calls = getattr(os, call), [0]

    def sometimes(*given: Any) -> None:
        calls[0] += 1
        if calls[0] > nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, sometimes)
        with pytest.raises(StoreError, match="No space left"):
            store.save(tmp_path, new)
    store.find(tmp_path, SPEC)  # the old one, the new one or none: damaged would raise
    assert not list(tmp_path.glob("*/.*.tmp"))
    store.save(tmp_path, new)
    assert (store.find(tmp_path, SPEC).accuracy == 0.5).all()


def test_a_store_that_is_a_file_is_said_so(tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(StoreError, match=r"cannot write .*runs"):
        store.save(tmp_path / "runs", a_run())


def test_temporaries_of_the_dead_are_swept(tmp_path):
    place = store.save(tmp_path, a_run())
    (place / ".run.json.1.tmp").write_bytes(b"half")
    store.save(tmp_path, a_run())
    assert sorted(p.name for p in place.iterdir()) == ["accuracy.npz", "run.json"]
    shop = Workshop(tmp_path, [SPEC])
    shop.place.mkdir(parents=True)
    (shop.place / ".checkpoint-3.pt.1.tmp").write_bytes(b"half")
    with shop.open():
        assert not list(shop.place.glob("*.tmp")) and not list(shop.place.glob(".*.tmp"))


# ---- checkpoints


def a_checkpoint(step: int) -> dict[str, Any]:
    return {"inner": {"state": {"w": torch.full((50,), float(step)), "n": {"rows": torch.arange(4)}}, "step": step},
            "seconds": 1.5, "names": ["a", None, True], "pair": (1, b"x")}


def filled(tmp_path: Path, steps: int = 3) -> Workshop:
    shop = Workshop(tmp_path, [SPEC])
    with shop.open():
        for step in range(steps):
            shop.save(a_checkpoint(step))
    return shop


def step_of(shop: Workshop) -> tuple[int | None, list[str]]:
    checkpoint, problems = shop.load()
    return checkpoint and checkpoint["inner"]["step"], problems


def newest(shop: Workshop) -> Path:
    return max(shop.place.glob("checkpoint-*.pt"), key=lambda p: int(p.stem.split("-")[1]))


def test_a_checkpoint_comes_back_and_the_one_before_is_kept(tmp_path):
    shop = filled(tmp_path)
    assert shop.load()[0]["inner"]["state"]["w"].tolist() == [2.0] * 50
    assert shop.load()[0]["pair"] == (1, b"x") and shop.load()[0]["names"] == ["a", None, True]
    assert step_of(shop) == (2, [])
    assert sorted(p.name for p in shop.place.glob("checkpoint-*")) == ["checkpoint-1.pt", "checkpoint-2.pt"]
    assert step_of(Workshop(tmp_path, [SPEC | {"seeds": 5}])) == (None, [])


def flip(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at, changed = bit % (8 * len(data)), bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        return bytes(changed)
    return change


HARM: dict[str, Callable[[bytes], bytes]] = {
    **{f"bit {bit}": flip(bit) for bit in range(0, 20_000, 997)},
    **{f"cut to {share} %": lambda data, share=share: data[:len(data) * share // 100] for share in (0, 1, 50, 99)},
    "another file": lambda data: b"hello", "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(harm, tmp_path):
    shop = filled(tmp_path)
    file = newest(shop)
    file.write_bytes(HARM[harm](file.read_bytes()))
    step, problems = step_of(shop)
    assert step == 1
    assert len(problems) == 1 and str(file) in problems[0]


def test_a_checkpoint_of_another_version_is_named_and_not_gone_on_from(tmp_path, monkeypatch):
    shop = filled(tmp_path)
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", checkpoints.CHECKPOINTS + 1)
    step, problems = step_of(shop)
    assert step is None and len(problems) == 1 and "another version of lifelong" in problems[0]
    with shop.open():
        shop.save(a_checkpoint(9))
    assert step_of(Workshop(tmp_path, [SPEC])) == (9, [])


@pytest.mark.parametrize("missing", ["unlinked", "a folder"])
def test_a_checkpoint_that_is_no_file_is_named_and_the_one_before_it_used(missing, tmp_path):
    shop = filled(tmp_path)
    file = newest(shop)
    file.unlink()
    if missing == "a folder":
        file.mkdir()
    step, problems = step_of(shop)
    assert step == 1 and len(problems) == 1 and str(file) in problems[0]


def test_with_both_damaged_it_begins_anew_and_says_so_twice(tmp_path):
    shop = filled(tmp_path)
    for file in shop.place.glob("checkpoint-*.pt"):
        file.write_bytes(b"")
    step, problems = step_of(shop)
    assert step is None and len(problems) == 2
    assert "before it" not in problems[1]  # there is none


@pytest.mark.parametrize("text", ["", "[{", "{}", "[1]", "null", '[{"file": "checkpoint-2.pt"}]'])
def test_a_damaged_pointer_is_named(text, tmp_path):
    shop = filled(tmp_path)
    (shop.place / "checkpoint.json").write_text(text)
    _, problems = step_of(shop)
    assert len(problems) == 1 and "checkpoint.json" in problems[0]
    with shop.open():
        shop.save(a_checkpoint(9))
    assert step_of(shop) == (9, [])


def test_a_pointer_to_another_folder_or_name_is_not_followed(tmp_path):
    shop = filled(tmp_path)
    (shop.place / "checkpoint.json").write_text(json.dumps([{"file": "../../elsewhere", "sha256": "0"}]))
    assert step_of(shop)[0] is None
    with shop.open():
        shop.save(a_checkpoint(9))
    assert step_of(shop) == (9, [])


def test_what_was_fallen_back_on_is_kept_until_two_good_ones_are_there(tmp_path):
    shop = filled(tmp_path)
    newest(shop).write_bytes(b"")
    assert step_of(shop)[0] == 1
    with shop.open():
        shop.load()
        shop.save(a_checkpoint(10))
    newest(shop).write_bytes(b"")  # the disk is failing
    assert step_of(shop)[0] == 1


def test_a_full_disk_keeps_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    shop = filled(tmp_path)
    real, calls = os.fsync, [0]
    for nth in range(4):
        def sometimes(handle: int, nth: int = nth) -> None:
            calls[0] += 1
            if calls[0] > nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        calls[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", sometimes)
            with pytest.raises(StoreError, match="No space left"):
                shop.save(a_checkpoint(100))
        step, problems = step_of(shop)
        assert step in (2, 100) and problems == []


class Point(NamedTuple):
    x: int
    y: int


class Kind(IntEnum):
    ONE = 1


@pytest.mark.parametrize(("value", "key"), [
    (np.zeros(3), "['inner']['state']"), ({1, 2}, "['inner']['state']"), ([1, Path(".")], "['inner']['state'][1]"),
    ({"deep": {"er": object()}}, "['inner']['state']['deep']['er']"), ({(1, 2): 3}, "['inner']['state']"),
    (print, "['inner']['state']"), (np.float64(1.0), "['inner']['state']"),
    (Point(1, 2), "['inner']['state']"), (defaultdict(int, a=1), "['inner']['state']"), (Kind.ONE, "['inner']['state']"),
])
def test_a_value_that_could_not_be_loaded_is_refused_with_its_key(value, key, tmp_path):
    shop = filled(tmp_path)
    try:
        shop.save({"inner": {"state": value}})
    except TypeError as error:
        assert key in str(error)
        assert step_of(shop) == (2, [])
    else:
        assert shop.load()[1] == [], "what is saved can be loaded"


def test_tensors_that_need_a_gradient_or_share_memory_come_back(tmp_path):
    shop = Workshop(tmp_path, [SPEC])
    base = torch.arange(6.0)
    with shop.open():
        shop.save({"inner": {"a": torch.nn.Parameter(base.clone()), "b": base[::2], "c": base.view(2, 3).T}})
    inner = shop.load()[0]["inner"]
    assert torch.equal(inner["b"], base[::2]) and torch.equal(inner["c"], base.view(2, 3).T)
    assert torch.equal(inner["a"].detach(), base)


def test_one_process_trains_a_stack(tmp_path):
    shop = Workshop(tmp_path, [SPEC])
    with shop.open():
        with pytest.raises(Busy, match="another process") as error, Workshop(tmp_path, [SPEC]).open():
            pass
        assert str(shop.place) in str(error.value)
        with Workshop(tmp_path, [SPEC | {"seeds": 3}]).open():
            pass
    with Workshop(tmp_path, [SPEC]).open():
        pass


def test_what_was_begun_is_found_and_gone_when_it_ends(tmp_path):
    shop = filled(tmp_path)
    (tmp_path / ".stacks" / "rubbish").mkdir()
    (tmp_path / ".stacks" / "rubbish" / "stack.json").write_text("[[[")
    assert [s.specs for s in Workshop.all(tmp_path)] == [[SPEC]]
    shop.close()
    assert Workshop.all(tmp_path) == [] and not shop.place.exists()
    assert store.runs(tmp_path) == ([], [])
