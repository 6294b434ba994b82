"""Pickles read as data: lists, dicts, numbers, text and arrays, by a machine that cannot import or call anything."""

from __future__ import annotations

import codecs
import math
import re
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

_CORE = ("numpy.core.", "numpy._core.")
_DTYPE = re.compile(r"[|<>=]?(b1|[iuf][1248]|U\d{1,4}|S\d{1,4})")
_LINE = 512  # bytes that a name or a number as text may have
_LONG = 256  # bytes that an integer may have
_INSTRUCTIONS = 5_000_000  # a few seconds; 60,000 images, each an array of its own, have two million at most


class Refused(ValueError):
    """The file is not a pickle that holds arrays and plain values alone; the sentence says where and why."""


class Name:
    """What stands for an import: its name and nothing else."""

    def __init__(self, text: str) -> None:
        self.text = text


class Text:
    """Encoded text as it lies in the file, decoded when asked for: numpy keeps the bytes of images so, at times."""

    def __init__(self, raw: memoryview, coding: str) -> None:
        self.raw, self.coding = raw, coding

    def __str__(self) -> str:
        return str(self.raw, self.coding, "surrogatepass" if self.coding == "utf-8" else "strict")


class Array:
    """What stands for an array: bytes of the file, and how they are to be read."""

    def __init__(self) -> None:
        self.raw: Any = None
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype("u1")
        self.order = "C"
        self.axes: tuple[int, ...] = ()

    def fill(self, raw: object, dtype: object, shape: object, order: str) -> Array:
        """Takes its content, once the sizes agree to the byte."""
        if not isinstance(dtype, Kind):
            raise Refused("an array has no type")
        if not (isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in shape)):
            raise Refused("an array's shape is not one")
        self.raw, self.dtype, self.shape, self.order = _bytes(raw), dtype.dtype(), shape, order
        if len(self.raw) != math.prod(shape) * self.dtype.itemsize:
            raise Refused(f"an array claims {math.prod(shape) * self.dtype.itemsize:,} bytes and has {len(self.raw):,}")
        return self

    def numpy(self) -> np.ndarray:
        """The array, a view of the file's bytes where these lie there as they are."""
        if self.raw is None:
            raise Refused("an array has no content")
        flat = np.frombuffer(self.raw, dtype=self.dtype)
        if self.axes:
            first = [self.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
            return flat.reshape(first).transpose(self.axes)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


class Kind:
    """What stands for the type of an array."""

    def __init__(self, code: str) -> None:
        if not _DTYPE.fullmatch(code):
            raise Refused(f"it holds an array of type {code[:20]!r}, not of numbers or text")
        self.code = code.lstrip("|<>=")
        self.end = code[:1] if code[:1] in "<>" else "<"

    def dtype(self) -> np.dtype:
        """The type as numpy has it."""
        return np.dtype(self.end + self.code)


def load(data: memoryview) -> Any:
    """What the pickle in `data` holds: None, bool, int, float, str, `Text`, memoryview, list, tuple, dict and `Array`.

    No name in it is looked up: those of numpy and a few of the standard library are known by their text and answered
    by the stand-ins here, every other one is refused. Protocols 0 to 5, of Python 2 and 3 and numpy 1 and 2.

    Args:
        data: the file's bytes; arrays are views of it.

    Raises:
        Refused: where it holds anything else, is cut short or ends early.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except Refused as problem:
        raise Refused(f"at byte {machine.at:,}: {problem}") from None
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as problem:
        raise Refused(f"at byte {machine.at:,}: it is damaged ({type(problem).__name__})") from None


def plain(value: object) -> Any:
    """A value with what the file keeps encoded decoded: text as str, arrays as lists; others as they are."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, memoryview):  # text of Python 2, or of Python 3 that was told to keep its bytes
        return str(value[:1000], "latin-1")
    if isinstance(value, Array):
        value = value.numpy()
        return np.char.decode(value, "latin-1").tolist() if value.dtype.kind == "S" else value.tolist()
    return value


class _Machine:
    """The stack, the memo and the place in the file of one pickle."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        steps, data = _STEPS, self.data
        for _ in range(_INSTRUCTIONS):
            if self.at >= len(data):
                raise Refused("it is cut short")
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if len(self.stack) != 1:
                    raise Refused("it ends in the middle")
                return self.stack[0]
            step = steps.get(code)
            if step is None:
                raise Refused(_FOREIGN.get(code, f"byte {code:#x} is no instruction of a pickle"))
            step(self)
        raise Refused(f"it has more than {_INSTRUCTIONS:,} instructions, which no such data needs")

    # ---- reading

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise Refused(f"it claims {count:,} bytes where {len(self.data) - self.at:,} are left")
        self.at, begin = end, self.at
        return self.data[begin:end]

    def number(self, form: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def line(self, longest: int = _LINE) -> memoryview:
        """Up to the next end of line, which a text of Python 2 may be far from."""
        begin, step = self.at, 16
        while True:
            step = min(4 * step, 1 << 20)
            piece = bytes(self.data[self.at:self.at + step])
            end = piece.find(b"\n")
            self.at += len(piece) if end < 0 else end + 1
            if end >= 0:
                if self.at - begin > longest:
                    raise Refused(f"a name or number of {self.at - begin:,} letters")
                return self.data[begin:self.at - 1]
            if not piece:
                raise Refused("it is cut short")

    # ---- the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise Refused("it takes what is not there")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What lies above the last mark, which goes."""
        begin = self.marks.pop()
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise Refused(f"a {type(value).__name__} stands where a {kind.__name__} should")
        return value

    def set(self, pairs: list[Any]) -> None:
        target = self.top(dict)
        if len(pairs) % 2:
            raise Refused("a key has no value")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_key(key)] = value

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def global_(self, module: str, name: str) -> None:
        text = f"{module} {name}"
        for core in _CORE:
            if module.startswith(core):
                text = f"numpy.core.{module.removeprefix(core)} {name}"
        if text not in _NAMES:
            raise Refused(f"it names {module[:60]}.{name[:60]}, which images and labels do not need")
        self.push(Name(text))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise Refused("it calls what is no function")
        self.push(_NAMES[function.text](arguments))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Kind) and isinstance(state, tuple):
            if len(state) < 8 or state[2:5] != (None, None, None):
                raise Refused("it holds an array of records")
            end = _word(state[1])
            target.end = end if end in "<>" else "<"
        elif isinstance(target, Array) and isinstance(state, tuple) and len(state) in (4, 5):
            shape, dtype, fortran, raw = state[-4:]
            target.fill(raw, dtype, shape, "F" if fortran is True or fortran == 1 else "C")
        else:
            raise Refused("it sets the state of what has none")

    def quoted(self) -> None:
        """Text of Python 2 in quotes, with its escapes."""
        raw = bytes(self.line(len(self.data)))
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            raise Refused("a text has no quotes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that Python 2 would not have written
            self.push(memoryview(codecs.escape_decode(raw[1:-1])[0]))

    def whole(self) -> None:
        """An integer as text; 00 and 01 are truth values."""
        word = bytes(self.line())
        self.push(word == b"01" if word in (b"00", b"01") else int(word))

    def long(self, count: int) -> None:
        if count > _LONG:
            raise Refused(f"an integer of {count:,} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))


def _bytes(raw: object) -> memoryview:
    if isinstance(raw, Text):
        raise Refused("an array is made of text")
    if not isinstance(raw, memoryview):
        raise Refused(f"an array is made of a {type(raw).__name__}, not of bytes")
    return raw


def _word(value: object) -> str:
    """A short text, of Python 2 or 3."""
    if not isinstance(value, (Text, memoryview)):
        raise Refused("a text is missing")
    if len(value.raw if isinstance(value, Text) else value) > _LINE:
        raise Refused("a name is too long")
    return str(plain(value))


def _key(value: object) -> Any:
    if isinstance(value, (Text, memoryview)):
        return _word(value)
    if type(value) in (int, bool, float):
        return value
    raise Refused(f"a {type(value).__name__} is a key")


# ---- what stands for the functions that a pickle may call


def _encoded(arguments: tuple[Any, ...]) -> memoryview:
    text, coding = arguments
    if not isinstance(text, Text) or _word(coding) not in ("latin1", "latin-1"):
        raise Refused("it encodes what is no text")
    if text.coding != "utf-8":
        return memoryview(str(text).encode("latin-1"))
    # In portions, cut where a letter begins: as one text, the bytes of images would be in memory twice more.
    out, begin, step = bytearray(), 0, 1 << 24
    while begin < len(text.raw):
        end = min(begin + step, len(text.raw))
        while end < len(text.raw) and text.raw[end] & 0xC0 == 0x80:
            end += 1
        out += str(text.raw[begin:end], "utf-8").encode("latin-1")
        begin = end
    return memoryview(out)


def _kind(arguments: tuple[Any, ...]) -> Kind:
    return Kind(_word(arguments[0]))


def _blank(arguments: tuple[Any, ...]) -> Array:
    if not (isinstance(arguments[0], Name) and arguments[0].text == "numpy ndarray"):
        raise Refused("an array is of no known class")
    return Array()


def _scalar(arguments: tuple[Any, ...]) -> Any:
    dtype, raw = arguments
    value = Array().fill(raw, dtype, (), "C").numpy()[()].item()
    return memoryview(value) if isinstance(value, bytes) else _text(value) if isinstance(value, str) else value


def _buffer(arguments: tuple[Any, ...]) -> Array:
    raw, dtype, shape, order, *axes = arguments
    array = Array().fill(raw, dtype, shape, _word(order))
    if array.order == "K":  # the axes of an array in which they lie in another order
        if len(axes) != 1 or not isinstance(axes[0], tuple) or sorted(axes[0]) != list(range(len(shape))):
            raise Refused("an array's axes are in no order")
        array.axes = axes[0]
        array.shape = tuple(shape[axis] for axis in axes[0])
    elif axes or array.order not in ("C", "F"):
        raise Refused("an array's order is none")
    return array


def _mapping(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for argument in arguments:
        if isinstance(argument, list):
            for key, value in argument:
                found[_key(key)] = value
        elif argument is not None and not isinstance(argument, Name):
            raise Refused("a dict is made of what is none")
    return found


def _empty(arguments: tuple[Any, ...]) -> memoryview:
    if arguments:
        raise Refused("bytes are made of something")
    return memoryview(b"")


def _marker(arguments: tuple[Any, ...]) -> Any:
    raise Refused("it calls what is no function")


def _text(value: str) -> Text:
    return Text(memoryview(value.encode("utf-8", "surrogatepass")), "utf-8")


_NAMES: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "numpy.core.multiarray _reconstruct": _blank, "numpy.core.multiarray scalar": _scalar,
    "numpy.core.numeric _frombuffer": _buffer, "numpy dtype": _kind, "numpy ndarray": _marker,
    "_codecs encode": _encoded, "collections defaultdict": _mapping, "collections OrderedDict": _mapping,
} | {f"{module} {name}": _empty if name == "bytes" else _marker
     for module in ("builtins", "__builtin__") for name in ("bytes", "list", "dict", "int")}

_FOREIGN = {code: f"it asks for {what}" for code, what in {
    0x50: "a persistent object", 0x51: "a persistent object", 0x82: "a registered extension",
    0x83: "a registered extension", 0x84: "a registered extension", 0x97: "a buffer outside of the file",
    0x69: "an object of a class", 0x6F: "an object of a class", 0x81: "an object of a class",
    0x92: "an object of a class", 0x8F: "a set", 0x90: "a set", 0x91: "a set"}.items()}


def _two(machine: _Machine) -> list[Any]:
    value = machine.pop()
    return [machine.pop(), value]


def _tuple(count: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(tuple([m.pop() for _ in range(count)][::-1]))


def _sized(form: str, make: Callable[[memoryview], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.push(make(m.take(m.number(form))))


def _as_text(raw: memoryview) -> Text:
    return Text(raw, "utf-8")


def _as_is(raw: memoryview) -> memoryview:
    return raw


def _skip(count: int) -> Callable[[_Machine], None]:
    def skip(m: _Machine) -> None:
        m.take(count)

    return skip


def _dup(m: _Machine) -> None:
    m.push(m.stack[-1])


def _mark(m: _Machine) -> None:
    m.marks.append(len(m.stack))


def _unmark(m: _Machine) -> None:
    m.marked()


def _pop(m: _Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.stack.pop()


def _stack_global(m: _Machine) -> None:
    module, name = _two(m)
    m.global_(_word(module), _word(name))


def _append(m: _Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: _Machine) -> None:
    values = m.marked()
    m.top(list).extend(values)


def _dict(m: _Machine) -> None:
    pairs = m.marked()
    m.push({})
    m.set(pairs)


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x28: _mark, 0x30: _pop, 0x31: _unmark, 0x32: _dup,
    0x46: lambda m: m.push(float(bytes(m.line()))), 0x47: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    0x49: _Machine.whole, 0x4A: lambda m: m.push(m.number("<i")), 0x4B: lambda m: m.push(m.number("<B")),
    0x4C: lambda m: m.push(int(bytes(m.line()).rstrip(b"L"))), 0x4D: lambda m: m.push(m.number("<H")),
    0x4E: lambda m: m.push(None), 0x88: lambda m: m.push(True), 0x89: lambda m: m.push(False),
    0x8A: lambda m: m.long(m.number("<B")), 0x8B: lambda m: m.long(m.number("<i")),
    0x53: _Machine.quoted, 0x54: _sized("<i", _as_is), 0x55: _sized("<B", _as_is),
    0x56: lambda m: m.push(Text(m.line(len(m.data)), "raw-unicode-escape")),
    0x58: _sized("<I", _as_text), 0x8C: _sized("<B", _as_text), 0x8D: _sized("<Q", _as_text),
    0x42: _sized("<I", _as_is), 0x43: _sized("<B", _as_is), 0x8E: _sized("<Q", _as_is), 0x96: _sized("<Q", _as_is),
    0x98: lambda m: None,  # READONLY_BUFFER: nothing here is written to
    0x29: lambda m: m.push(()), 0x74: lambda m: m.push(tuple(m.marked())), 0x85: _tuple(1), 0x86: _tuple(2),
    0x87: _tuple(3), 0x5D: lambda m: m.push([]), 0x6C: lambda m: m.push(m.marked()), 0x61: _append, 0x65: _appends,
    0x7D: lambda m: m.push({}), 0x64: _dict, 0x73: lambda m: m.set(_two(m)), 0x75: lambda m: m.set(m.marked()),
    0x63: lambda m: m.global_(str(m.line(), "utf-8"), str(m.line(), "utf-8")), 0x93: _stack_global,
    0x52: _Machine.reduce, 0x62: _Machine.build,
    0x67: lambda m: m.push(m.memo[int(bytes(m.line()))]), 0x68: lambda m: m.push(m.memo[m.number("<B")]),
    0x6A: lambda m: m.push(m.memo[m.number("<I")]),
    0x70: lambda m: m.remember(int(bytes(m.line()))), 0x71: lambda m: m.remember(m.number("<B")),
    0x72: lambda m: m.remember(m.number("<I")), 0x94: lambda m: m.remember(len(m.memo)),
    0x80: _skip(1),  # PROTO: all of them are read alike
    0x95: _skip(8),  # FRAME: where the writer paused
}
