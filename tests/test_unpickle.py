"""Pickles are read as data: every way in which arrays are pickled, and nothing else."""

from __future__ import annotations

import builtins
import contextlib
import copyreg
import os
import pickle
import random
import resource
import struct
import tracemalloc
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifelong.data.pictures import decoding, unpickle, workers
from lifelong.data.pictures.decoding import describe
from lifelong.data.pictures.unpickle import Refused, load, plain

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
NAMES = ["n01", "n01", "n02", "n02", "n02", "n03"]


def forms() -> dict[str, Any]:
    """The same images and labels in the forms that circulate."""
    classes = defaultdict(list)
    for i, name in enumerate(NAMES):
        classes[name].append(i)
    return {
        "class_dict": {"image_data": IMAGES, "class_dict": dict(classes)},
        "defaultdict": {"image_data": IMAGES, "class_dict": classes},
        "arrays of positions": OrderedDict(image_data=IMAGES, class_dict={k: np.array(v) for k, v in classes.items()}),
        "labels as a list": {"data": IMAGES, "labels": NAMES},
        "labels as an array": {"images": IMAGES, "labels": np.array(NAMES)},
        "labels as bytes": {"images": IMAGES, "labels": np.array(NAMES, dtype="S")},
        "labels as numpy's text": {"data": list(IMAGES), "labels": [np.str_(name) for name in NAMES]},
        "in Fortran's order": {"data": np.asfortranarray(IMAGES), "labels": tuple(NAMES)},
        "numbers with names": {"data": IMAGES, "labels": [int(name[1:]) for name in NAMES],
                               "catname2label": {"n01": 1, "n02": 2, "n03": 3}},
    }


def read(path: Path, content: bytes) -> list[Any]:
    path.write_bytes(content)
    return describe([(str(path), None)], "pickle")[0]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", forms())
def test_every_form_is_read_in_every_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    content = pickle.dumps(forms()[form], protocol=protocol)
    for text in (content, content.replace(b"numpy._core", b"numpy.core")):  # numpy 1 named its parts otherwise
        if protocol < 4 or text == content:  # later names are preceded by their length
            assert read(tmp_path / "x.pkl", text) == [
                [None, "n01", [[None, 0], [None, 1]]], [None, "n02", [[None, 2], [None, 3], [None, 4]]],
                [None, "n03", [[None, 5]]]]
    held = load(memoryview(content))
    pixels = next(held[key] for key in ("image_data", "data", "images") if key in held)
    pixels = np.stack([one.numpy() for one in pixels]) if isinstance(pixels, list) else pixels.numpy()
    np.testing.assert_array_equal(pixels, IMAGES)


def python2(protocol: int, labels: list[int]) -> bytes:
    """What Python 2 and numpy 1 write: images and labels, text and bytes alike in quotes or counted."""
    def text(value: bytes) -> bytes:
        if protocol == 0:
            return b"S" + repr(value)[1:].encode() + b"\n"
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"I%d\n" % value if protocol == 0 else b"K" + bytes([value])

    shape = b"(" + b"".join(number(n) for n in IMAGES.shape) + b"t"
    dtype = (b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR(" + number(3) + text(b"|") + b"NNN"
             + b"I-1\nI-1\n" + number(0) + b"tb")
    array = (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + text(b"b") + b"tR("
             + number(1) + shape + dtype + b"I00\n" + text(IMAGES.tobytes()) + b"tb")
    own = b"(l" + b"".join(number(label) + b"a" for label in labels)
    begin = b"\x80\x02" if protocol == 2 else b""
    return begin + b"(d" + text(b"data") + array + b"s" + text(b"labels") + own + b"s."


@pytest.mark.parametrize("protocol", range(3))
def test_pickles_of_python_2_are_read(tmp_path: Path, protocol: int) -> None:
    content = python2(protocol, [7, 7, 8, 8, 8, 9])
    np.testing.assert_array_equal(pickle.loads(content, encoding="latin1")["data"], IMAGES)
    np.testing.assert_array_equal(load(memoryview(content))["data"].numpy(), IMAGES)
    assert [entry[1] for entry in read(tmp_path / "x.pkl", content)] == [7, 8, 9]


@pytest.mark.parametrize("value", [
    None, True, 2.5, -7, 2**70, "text", "ü\ud800", (1, (2, 3, 4, 5)), [1, [2]], {"a": 1, 2: [3.5]}, np.int64(-3),
    np.float32(0.5), np.str_("x"), np.arange(5, dtype=">i4"), np.array(["a", "bcü"]), np.zeros((0, 3)), np.array(3),
    np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2).transpose(0, 2, 3, 1), np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
])
def test_plain_values_and_arrays_come_back(value: Any) -> None:
    for protocol in range(6):
        found = load(memoryview(pickle.dumps(value, protocol=protocol)))
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found.numpy(), value)
        else:
            assert plain(found) == value


def test_an_array_that_occurs_twice_is_one() -> None:
    found = load(memoryview(pickle.dumps([IMAGES, IMAGES])))
    assert found[0] is found[1]


def test_images_are_views_of_the_file() -> None:
    content = pickle.dumps({"data": np.zeros((40, 84, 84, 3), np.uint8)}, protocol=4)
    tracemalloc.start()
    load(memoryview(content))["data"].numpy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(content) / 10


class Evil:
    """Pickles to what runs a command when it is loaded."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


def dump(value: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


def claim(code: bytes, size: int) -> bytes:
    return b"\x80\x04" + code + size.to_bytes(8, "little") + b"abc."


MARK = "/dev/null/never"
REBUILT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
KIND = b"cnumpy\ndtype\n(X\x02\x00\x00\x00%sK\x00K\x01tR"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "runs a command": (dump(Evil(os.system, "echo ran")), "names posix.system"),
    "runs a command, in text": (b"cos\nsystem\n(S'echo ran'\ntR.", "names os.system"),
    "evaluates text": (dump({"data": Evil(eval, "1 + 1"), "labels": []}), "names builtins.eval"),
    "looks inside what is allowed": (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", "names numpy.ndarray.__cl"),
    "makes an object by INST": (b"(S'x'\nios\nsystem\n.", "asks for an object of a class"),
    "makes an object by OBJ": (b"(cnumpy\nndarray\no.", "asks for an object of a class"),
    "makes an object by NEWOBJ": (b"\x80\x02cnumpy\nndarray\n)\x81.", "asks for an object of a class"),
    "calls an array": (REBUILT + b")R.", "calls what is no function"),
    "calls a class of arrays": (b"cnumpy\nndarray\n(K\x05tR.", "calls what is no function"),
    "has an array of objects": (REBUILT + b"(K\x01(K\x01t" + KIND % b"O8" + b"\x89(K\x01K\x02K\x03lC\x08" + bytes(8)
                                + b"tb.", "of type 'O8'"),
    "has a record type": (REBUILT + b"(K\x01(K\x01t" + KIND % b"V8" + b"\x89C\x08" + bytes(8) + b"tb.", "type 'V8'"),
    "turns numbers into objects": (KIND % b"u1" + b"(K\x03X\x01\x00\x00\x00|(X\x01\x00\x00\x00ft}NJ\xff\xff\xff\xffJ"
                                   b"\xff\xff\xff\xffK\x3ftb.", "array of records"),
    "has an array of no type": (REBUILT + b"(K\x01(K\x01tNK\x00C\x01atb.", "an array has no type"),
    "claims an array of a terabyte": (REBUILT + b"(K\x01(\x8a\x06\x00\x00\x00\x00\x00\x01t" + KIND % b"u1"
                                      + b"\x89C\x01atb.", "claims 1,099,511,627,776 bytes and has 1"),
    "claims a negative shape": (REBUILT + b"(K\x01(J\xff\xff\xff\xfft" + KIND % b"u1" + b"\x89C\x00tb.", "shape"),
    "claims text of a terabyte": (claim(b"\x8d", 2**40), "claims 1,099,511,627,776 bytes where 4 are left"),
    "claims bytes of a terabyte": (claim(b"\x8e", 2**40), "claims 1,099,511,627,776 bytes where 4"),
    "claims a bytearray of 2^63": (claim(b"\x96", 2**63), "bytes where 4 are left"),
    "claims a frame of a terabyte": (b"\x80\x04\x95" + bytes(7), "claims 8 bytes where 7 are left"),
    "has a memo of four billion": (b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xfe.", "damaged"),
    "has a number of a megabyte": (b"\x8b\x00\x00\x10\x00" + bytes(2**20) + b".", "an integer of more than 255 bytes"),
    "has a number of many digits": (b"I" + b"9" * 5000 + b"\n.", "name or number of 5,001 letters"),
    "nests lists without end": (b"]" * 30_000 + b"a" * 15_000, "cut short"),
    "nests tuples in a key": (b"}" + b"N" + b"\x85" * 30_000 + b"Ns.", "a tuple is a key"),
    "contains itself": (b"]q\x00h\x00a0(h\x00h\x00d.", "a list is a key"),
    "doubles itself": (b"]" + b"q\x002h\x00\x86" * 30 + b"N", "cut short"),
    "asks for a persistent object": (b"Pfoo\n.", "persistent object"),
    "asks for one from the stack": (b"X\x01\x00\x00\x00aQ.", "persistent object"),
    "asks for an extension": (b"\x80\x02\x82\x01.", "registered extension"),
    "asks for a buffer": (b"\x80\x05\x97.", "buffer outside"),
    "takes from an empty stack": (b"0000.", "it takes a value that is not there"),
    "takes beyond a mark": (b"N(a.", "not there"),
    "marks without end": (b"(" * 30_000, "cut short"),
    "stops early": (b"NN.", "ends in the middle"),
    "never stops": (b"N", "cut short"),
    "is cut short": (dump({"data": IMAGES, "labels": NAMES})[:-40], "cut short"),
    "is empty": (b"", "cut short"),
    "is text": (b"not a pickle", "no instruction of a pickle"),
    "sets the state of a list": (b"]}b.", "sets the state"),
    "sets attributes of a name": (b"cnumpy\ndtype\n}X\x04\x00\x00\x00callX\x01\x00\x00\x00asb.", "sets the state"),
    "sets slots of a name": (b"cnumpy\ndtype\n(N}X\x04\x00\x00\x00callX\x01\x00\x00\x00astb.", "sets the state"),
    "sets attributes of an array": (REBUILT + b"}X\x05\x00\x00\x00numpyNsb.", "sets the state"),
    "sets slots of an array": (REBUILT + b"(N}X\x05\x00\x00\x00numpyNstb.", "damaged"),
    "calls with a list": (b"cnumpy\ndtype\n]X\x02\x00\x00\x00u1aR.", "calls what is no function"),
    "calls a text": (b"X\x06\x00\x00\x00system)R.", "calls what is no function"),
    "calls with too few values": (b"c_codecs\nencode\n)R.", "damaged"),
    "builds an array of another class": (b"cnumpy.core.multiarray\n_reconstruct\n(c__builtin__\nlist\n(K\x00tC\x01btR.",
                                         "no known class"),
    "names by what is no text": (b"\x80\x04K\x01\x8c\x06system\x93.", "damaged"),
    "names a name with a space": (b"\x80\x04\x8c\x00\x8c\x0bnumpy dtype\x93.", "names .numpy dtype"),
    "names the builtins of Python 2": (b"c__builtin__\neval\n.", "names __builtin__.eval"),
    "registers what copyreg calls": (b"ccopyreg\n_reconstructor\n.", "names copyreg._reconstructor"),
    "takes a method by a dotted name": (b"\x80\x04\x8c\x07_codecs\x8c\x0fencode.__self__\x93.", "names _codecs.encode._"),
    "makes an object by NEWOBJ_EX": (b"\x80\x04cnumpy\nndarray\n)}\x92.", "asks for an object of a class"),
    "makes a set of lists": (b"\x80\x04\x8f(]\x90.", "asks for a set"),
    "asks for an extension of two bytes": (b"\x80\x02\x83\x01\x01.", "registered extension"),
    "asks for an extension of four bytes": (b"\x80\x02\x84\x01\x00\x00\x00.", "registered extension"),
    "appends to an array": (REBUILT + b"Na.", "damaged"),
    "appends to a dict": (b"}(Ne.", "damaged"),
    "sets an item of a list": (b"]K\x00Ns.", "a list stands where a dict should"),
    "has a key without a value": (b"}(Nu.", "a key has no value"),
    "has a key of a megabyte": (b"}X\x00\x00\x10\x00" + b"a" * 2**20 + b"Ns.", "a name of 1,048,576 letters"),
    "has a dict of what are no pairs": (b"ccollections\nOrderedDict\n(](NNNteatR.", "damaged"),
    "has a shape of truth values": (REBUILT + b"(K\x01(\x88t" + KIND % b"u1" + b"\x89C\x01atb.", "shape"),
    "has a shape of nine axes": (REBUILT + b"(K\x01(" + b"K\x01" * 9 + b"t" + KIND % b"u1" + b"\x89C\x01atb.", "shape"),
    "has axes in no order": (b"cnumpy.core.numeric\n_frombuffer\n(C\x01a" + KIND % b"u1" + b"(K\x01K\x01tX\x01\x00\x00\x00K"
                             b"(K\x01K\x01ttR.", "damaged"),
    "has text that is not UTF-8": (b"X\x01\x00\x00\x00\xff.", "damaged"),
    "has a memo below nothing": (b"Np-1\n.", "damaged"),
    "has text beyond Unicode": (b"cnumpy.core.multiarray\nscalar\n(" + KIND % b"U2" + b"(K\x03X\x01\x00\x00\x00<NNNK\x08K"
                                b"\x04K\x00tbC\x08a\x00\x00\x00\x30\x00\x00\x32tR.", "a text in it is damaged"),
    "has an array of text beyond Unicode": (REBUILT + b"(K\x01(K\x01t" + KIND % b"U1" + b"\x89C\x04\x00\x00\x11\x00tb.",
                                            "a text in it is damaged"),
    "is of protocol 99": (b"\x80\x63N.", "damaged"),
    "stops inside of a mark": (b"N(N.", "ends in the middle"),
    "decodes with a codec": (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00hextR.", "encodes"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_pickle_is_refused(tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    content, words = HOSTILE[how]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="x.pkl is not read: at byte") as caught:
            read(tmp_path / "x.pkl", content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in str(caught.value)
    assert peak < 20_000_000
    assert "ran" not in capfd.readouterr().out


@pytest.mark.parametrize(("value", "words"), [
    ([1, 2], "contains a list, not a dict"),
    ({"a": 1}, "has a, but should have image_data and class_dict"),
    ({"data": IMAGES, "labels": NAMES[1:]}, "has 6 images but 5 labels"),
    ({"data": IMAGES.astype(np.float32), "labels": NAMES}, "of float32, not [N, height, width, 3] of uint8"),
    ({"data": IMAGES[..., :2], "labels": NAMES}, "its images are an array [6, 4, 4, 2]"),
    ({"data": [1, 2], "labels": [1, 2]}, "nor a list of such images"),
    ({"data": IMAGES, "labels": [1.5] * 6}, "a label is a float"),
    ({"data": IMAGES, "labels": np.zeros((6, 2), int)}, "its labels are not a list"),
    ({"image_data": IMAGES, "class_dict": {"a": [0, 6]}}, "not among its 6"),
    ({"image_data": IMAGES, "class_dict": {"a": [0, -1]}}, "not among its 6"),
    ({"image_data": IMAGES, "class_dict": {"a": [0], "b": [0]}}, "or names one twice"),
    ({"image_data": IMAGES, "class_dict": [0]}, "its class_dict is not a dict"),
])
def test_a_pickle_of_something_else_is_told(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match="x.pkl is not read") as caught:
        read(tmp_path / "x.pkl", dump(value))
    assert words in str(caught.value)


def mutant(content: bytes, g: random.Random, others: list[bytes]) -> bytes:
    """The file with a few bytes changed, inserted, removed, doubled or taken from another file."""
    made = bytearray(content)
    for _ in range(g.choice((1, 1, 2, 4, 16))):
        at, size = g.randrange(len(made) + 1), g.choice((1, 1, 2, 8, 64))
        how = g.randrange(6)
        if how == 0:
            made[at:at + 1] = bytes([g.randrange(256)])
        elif how == 1:
            made[at:at] = g.randbytes(size)
        elif how == 2:
            del made[at:at + size]
        elif how == 3:
            made[at:at] = made[at:at + size]
        elif how == 4:
            other = g.choice(others)
            begin = g.randrange(len(other))
            made[at:at + size] = other[begin:begin + size]
        else:
            made[at:at + 4] = g.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x00\x00\x00\x00"))
        made = made or bytearray(b".")
    return bytes(made[:g.randrange(len(made))]) if g.random() < 0.1 else bytes(made)


class Memory(decoding.Files):
    """One file, for writing it takes longer than reading it."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, place: Any, ceiling: int) -> memoryview:
        return memoryview(self.content)


@pytest.mark.parametrize("count", [2000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_mutants_are_read_or_refused(count: int) -> None:
    seeds = [dump(form, protocol) for form in forms().values() for protocol in range(6)]
    seeds += [python2(protocol, [1, 2, 3, 4, 5, 6]) for protocol in range(3)] + [evil for evil, _ in HOSTILE.values()
                                                                                if 0 < len(evil) < 2000]
    g, refused, before = random.Random(count), 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        try:
            decoding._described_pickle(Memory(mutant(g.choice(seeds), g, seeds)), ("x.pkl", None))
        except ValueError as problem:  # nothing else may come of it
            assert "x.pkl is not read: " in str(problem)
            refused += 1
    assert count / 2 < refused < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kilobytes


def test_a_pickle_of_endless_instructions_is_left_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "_READS", 1000)
    assert load(memoryview(b"N" + b"20" * 499 + b".")) is None
    with pytest.raises(Refused, match="more than 1,000 instructions and operands, which no such data needs"):
        load(memoryview(b"N" + b"20" * 500 + b"."))


def test_a_pickle_that_unfolds_to_more_than_its_process_may_take_is_refused(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    # A text of a megabyte is encoded two thousand times, and every result kept.
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x00"
    encoded = b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1tR"
    (tmp_path / "x.pkl").write_bytes(b"](" + text + 2000 * encoded + b"e.")
    bounded = workers._bounded
    monkeypatch.setattr(workers, "_bounded", lambda *given: bounded(*given) | {"memory": 1_000_000_000})
    with pytest.raises(ValueError, match="x.pkl cannot be read: .* took more memory or time than such data needs"):
        workers.describe("reading", [(str(tmp_path / "x.pkl"), None)], "pickle")


def test_nothing_is_looked_up_or_called_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    copyreg.add_extension("os", "system", 1)
    monkeypatch.setattr(pickle, "_getattribute", None)
    monkeypatch.setattr(pickle._Unpickler, "find_class", None)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", None)
        for content, _ in HOSTILE.values():
            with contextlib.suppress(Refused):
                load(memoryview(content))
    copyreg.remove_extension("os", "system", 1)


def test_no_instruction_of_the_interpreter_that_calls_or_sets_is_taken() -> None:
    base = pickle._Unpickler
    calls = {base.load_reduce, base.load_build, base.load_inst, base.load_obj, base.load_newobj, base.load_newobj_ex,
             base.load_persid, base.load_binpersid, base.load_ext1, base.load_ext2, base.load_ext4, base.load_setitem,
             base.load_setitems, base.load_dict, base.load_next_buffer, base.load_bytearray8, base.load_frame}
    assert not calls & set(unpickle._Machine.dispatch.values())
    assert set(unpickle._Machine.dispatch) <= set(base.dispatch)
