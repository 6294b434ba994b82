"""Pickles read as data: the interpreter's unpickler with stand-ins for every name, which looks up and calls nothing."""

from __future__ import annotations

import math
import pickle
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_DTYPE = re.compile(r"[|<>=]?(b1|[iuf][1248]|U\d{1,4}|S\d{1,4})")
_END = re.compile(rb"\n")
_LINE = 512  # bytes of a number as text, of a name, and of a dict's key
_VIEW = 4096  # bytes from which on a value is a view of the file instead of a copy
_READS = 10_000_000  # a few seconds; 60,000 images, each an array of its own, need four million


class Refused(ValueError):
    """Raised for a pickle that holds anything but arrays and plain values; the sentence says what and where."""


class Name:
    """The stand-in for an imported name: `call` takes the arguments with which the pickle calls that name."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class Kind:
    """The stand-in for a dtype.

    Args:
        code: the code of a type of numbers or text, for example 'u1'.
    """

    def __init__(self, code: object, *_: object) -> None:
        if not _DTYPE.fullmatch(_word(code)):
            raise Refused(f"it holds an array of type {_word(code)[:20]!r}, not of numbers or text")
        self.dtype = np.dtype(_word(code).replace("=", "<").replace("|", "<"))

    def set(self, state: tuple[Any, ...]) -> None:
        """Sets the byte order, which a pickle holds apart from the code."""
        if len(state) < 8 or state[2:5] != (None, None, None):
            raise Refused("it holds an array of records")
        self.dtype = self.dtype.newbyteorder(">" if _word(state[1]) == ">" else "<")


class Array:
    """The stand-in for an array; `value` is None until the pickle has given the content."""

    def __init__(self, value: np.ndarray | None = None) -> None:
        self.value = value

    def set(self, state: tuple[Any, ...]) -> None:
        """Sets the content from what `ndarray.__reduce__` gives: shape, dtype, whether in Fortran's order, bytes."""
        shape, kind, fortran, raw = state[-4:]
        self.value = _view(raw, kind, shape, "F" if fortran in (True, 1) else "C")

    def numpy(self) -> np.ndarray:
        """The array, a view of the bytes of the file unless these are encoded there as text."""
        if self.value is None:
            raise Refused("an array has no content")
        return self.value


def load(data: memoryview) -> Any:
    """The content of a pickle: None, bool, int, float, str, bytes, memoryview, list, tuple, dict, `Name` and `Array`.

    No name in the pickle is looked up and nothing that it names is called: names of numpy and a few of the standard
    library have stand-ins in this module, and every other name is refused. Reads protocols 0 to 5, written by Python 2
    or 3 and numpy 1 or 2.

    What a pickle claims is bounded by the bytes that it has, but a small one can still ask for much memory (for
    example by encoding the same text many times); a caller that does not trust it bounds the memory of the process.

    Args:
        data: the bytes of the file. Long texts of bytes, and so arrays, are views of it.

    Raises:
        Refused: where the pickle holds anything else, or is damaged or cut short.
    """
    reader = _Reader(data)
    machine = _Machine(reader, encoding="bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that no writer of pickles uses
            found = machine.load()
        if machine.stack or machine.metastack:
            raise Refused("it ends in the middle")
    except MemoryError:
        raise
    except Exception as problem:  # whatever a damaged pickle makes the interpreter raise
        raise Refused(f"at byte {reader.at:,}: {_reason(problem)}") from None
    return found


def plain(value: object) -> Any:
    """The value as a plain one: text of Python 2 as str, an array as a list; any other value as it is."""
    if isinstance(value, bytes | memoryview):
        return str(value[:1000], "latin-1")
    if isinstance(value, Array):
        array = value.numpy()
        return np.char.decode(array, "latin-1").tolist() if array.dtype.kind == "S" else array.tolist()
    return value


def _reason(problem: Exception) -> str:
    if isinstance(problem, Refused):
        return str(problem)
    return "it takes a value that is not there" if isinstance(problem, IndexError) else \
        f"it is damaged ({type(problem).__name__})"


class _Reader:
    """The bytes of a pickle and the place reached in them; bounds what is claimed by what is there."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.reads = data, 0, 0

    def read(self, count: int) -> Any:
        """The next `count` bytes, as bytes or as a memoryview."""
        left = len(self.data) - self.at
        self.reads += 1
        if not 0 <= count <= left:
            raise Refused(f"it claims {count:,} bytes where {left:,} are left" if left else "it is cut short")
        if self.reads > _READS:
            raise Refused(f"it has more than {_READS:,} instructions and operands, which no such data needs")
        self.at += count
        piece = self.data[self.at - count:self.at]
        return piece if count >= _VIEW else bytes(piece)

    def readline(self) -> bytes:
        """The bytes up to the next end of line, which is included."""
        end = _END.search(self.data, self.at)
        if end is None:
            raise Refused("it is cut short")
        begin, self.at = self.at, end.end()
        if self.at - begin > _LINE and self.data[begin - 1] not in pickle.STRING + pickle.UNICODE:
            raise Refused(f"a name or number of {self.at - begin:,} letters")
        return bytes(self.data[begin:self.at])


# ---- the stand-ins of the names that a pickle of arrays calls


def _word(value: object) -> str:
    """A short text of Python 2 or 3."""
    if not isinstance(value, str | bytes | memoryview):
        raise Refused("a text is missing")
    if len(value) > _LINE:
        raise Refused(f"a name of {len(value):,} letters")
    return str(plain(value))


def _key(value: object) -> Any:
    if isinstance(value, str | bytes | memoryview):
        return _word(value)
    if type(value) in (int, bool, float):  # a nested tuple is not hashed: the depth of that is bounded by nothing
        return value
    raise Refused(f"a {type(value).__name__} is a key")


def _encoded(text: object, coding: object) -> bytes:
    """Bytes, which protocols before 3 hold as text."""
    if not isinstance(text, str) or _word(coding) not in ("latin1", "latin-1"):
        raise Refused("it encodes what is no text")
    return text.encode("latin-1")


def _empty(*arguments: object) -> bytes:
    if arguments:
        raise Refused("bytes are made of something")
    return b""


def _blank(kind: object, *_: object) -> Array:
    if kind is not _NAMES["numpy ndarray"]:
        raise Refused("an array is of no known class")
    return Array()


def _view(raw: object, kind: object, shape: object, order: str = "C") -> np.ndarray:
    """Bytes as an array, once it is known that there are as many as its type and shape need."""
    if type(kind) is not Kind:
        raise Refused("an array has no type")
    if not (isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in shape)):
        raise Refused("the shape of an array is not one")
    if not isinstance(raw, bytes | memoryview):
        raise Refused(f"an array is made of a {type(raw).__name__}, not of bytes")
    if len(raw) != (size := math.prod(shape) * kind.dtype.itemsize):
        raise Refused(f"an array claims {size:,} bytes and has {len(raw):,}")
    if kind.dtype.kind == "U" and (np.frombuffer(raw, kind.dtype.byteorder + "u4") > 0x10FFFF).any():
        raise Refused("a text in it is damaged")  # numpy would make a str of it that Python holds to be impossible
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _scalar(kind: object, raw: object) -> Any:
    return _view(raw, kind, ()).item()


def _buffer(raw: object, kind: object, shape: object, order: object, axes: Any = None) -> Array:
    """An array of protocol 5; of order 'K' with its axes in the order in which they lie in memory."""
    if _word(order) not in (("C", "F") if axes is None else ("K",)):
        raise Refused("the order of an array is none")
    array = _view(raw, kind, shape, _word(order))
    return Array(array if axes is None else array.transpose(axes))


def _mapping(*arguments: object) -> dict[Any, Any]:
    """A dict, of a factory of values, which is not needed, and of pairs."""
    found: dict[Any, Any] = {}
    for argument in arguments:
        if isinstance(argument, list):
            found.update((_key(key), value) for key, value in argument)
        elif argument is not None and not isinstance(argument, Name):
            raise Refused("a dict is made of what is none")
    return found


def _uncalled(*_: object) -> Any:
    raise Refused("it calls what is no function")


_NAMES = {text: Name(call) for text, call in {
    "numpy.core.multiarray _reconstruct": _blank, "numpy.core.multiarray scalar": _scalar,
    "numpy.core.numeric _frombuffer": _buffer, "numpy dtype": Kind, "numpy ndarray": _uncalled,
    "_codecs encode": _encoded, "collections defaultdict": _mapping, "collections OrderedDict": _mapping,
    **{f"{module} {name}": _empty if name == "bytes" else _uncalled
       for module in ("builtins", "__builtin__") for name in ("bytes", "list", "dict", "int")}}.items()}


# ---- the instructions

_FOREIGN = {code: f"it asks for {what}" for codes, what in {
    (pickle.PERSID, pickle.BINPERSID): "a persistent object", (pickle.NEXT_BUFFER,): "a buffer outside of the file",
    (pickle.EXT1, pickle.EXT2, pickle.EXT4): "a registered extension",
    (pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX): "an object of a class",
    (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET): "a set",
    (pickle.LONG4,): "an integer of more than 255 bytes"}.items() for (code,) in codes}


class _Instructions(dict[int, Callable[[Any], None]]):
    """The instructions by their codes; any other is refused."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise Refused(_FOREIGN.get(code, f"byte {code:#x} is no instruction of a pickle"))


def _sized(form: str) -> Callable[[_Machine], None]:
    return lambda m: m.append(m.read(struct.unpack(form, m.read(struct.calcsize(form)))[0]))


class _Machine(pickle._Unpickler):
    """The interpreter's unpickler, of which only instructions that cannot look up, call or set anything are taken.

    It is the unpickler written in Python, because that one is a table of instructions, from which some can be left out
    and others replaced. The one written in C is faster, but reserves as much memory as a pickle claims (for bytearrays,
    and for the highest index of the memo), calls and changes whatever is on its stack, and cannot be told to stop.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Name:
        """The stand-in of a name, known by its text alone."""
        known = f"{re.sub(r'^numpy[.]_core[.]', 'numpy.core.', module)} {name}"
        if known not in _NAMES:
            raise Refused(f"it names {module[:60]}.{name[:60]}, which images and labels do not need")
        return _NAMES[known]

    def load_reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise Refused("it calls what is no function")
        self.append(name.call(*arguments))

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) not in (Kind, Array) or type(state) is not tuple:
            raise Refused("it sets the state of what has none")
        target.set(state)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(pairs) % 2:
            raise Refused(f"a key has no value, or a {type(target).__name__} stands where a dict should")
        target.update((_key(key), value) for key, value in zip(pairs[::2], pairs[1::2], strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def load_dict(self) -> None:
        pairs = self.pop_mark()
        self.append({})
        self.set_items(pairs)

    dispatch = _Instructions({code: pickle._Unpickler.dispatch[code] for (code,) in (
        pickle.PROTO, pickle.STOP, pickle.MARK, pickle.POP, pickle.POP_MARK, pickle.DUP, pickle.GLOBAL,
        pickle.STACK_GLOBAL, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET,
        pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.INT, pickle.BININT, pickle.BININT1,
        pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.FLOAT, pickle.BINFLOAT, pickle.STRING, pickle.BINSTRING,
        pickle.SHORT_BINSTRING, pickle.UNICODE, pickle.BINUNICODE, pickle.BINUNICODE8, pickle.SHORT_BINUNICODE,
        pickle.SHORT_BINBYTES, pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
        pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.READONLY_BUFFER)} | {
        pickle.BINBYTES[0]: _sized("<I"), pickle.BINBYTES8[0]: _sized("<Q"), pickle.BYTEARRAY8[0]: _sized("<Q"),
        pickle.FRAME[0]: lambda m: m.read(8),  # the length of a part, which needs no copy of its own
        pickle.REDUCE[0]: load_reduce, pickle.BUILD[0]: load_build, pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems})
