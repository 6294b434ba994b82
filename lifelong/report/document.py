"""What a report is made of, and how it is written as Markdown and CSV; the page is in html.py."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Code(str):
    """What a user typed: set in typewriter letters, and never read as markup."""


Words = tuple[str, ...]  # pieces of a sentence, plain or Code


def words(*pieces: str | Words) -> Words:
    """One sequence of pieces."""
    return tuple(w for piece in pieces for w in ([piece] if isinstance(piece, str) else piece))


def joined(several: Sequence[Words], between: str = " ") -> Words:
    """Sentences one after the other."""
    return words(*(piece for one in several if one for piece in (between, one)))[1:]


def plain(text: Words) -> str:
    """The letters alone."""
    return "".join(text)


class Column(NamedTuple):
    """A column's title, and the names of the numbers behind each of its cells, which CSV holds in place of the text."""

    title: str
    raw: tuple[str, ...] = ()


class Cell(NamedTuple):
    """What stands in a cell, the numbers behind it, and whether it is the `best` of its column, or `tied` with it."""

    text: Words
    raw: tuple[float | int | None, ...] = ()
    mark: str = ""


@dataclass(frozen=True)
class Heading:
    """A title of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: Words


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[Words, ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns, with what a reader must know of them; `name` is that of its files."""

    name: str
    caption: Words
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: Words = ()
    definitions: tuple[Words, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure: `name` is that of its files."""

    name: str
    caption: Words
    alt: str


Block = Heading | Paragraph | Bullets | Table | Picture


def cell(text: str | Words, *raw: float | int | None, mark: str = "") -> Cell:
    """A cell of one piece or several."""
    return Cell((text,) if isinstance(text, str) else text, raw, mark)


# ---- Markdown


def markdown(blocks: Sequence[Block], figures: str | None = None) -> str:
    """Blocks as Markdown with GitHub's tables.

    Args:
        blocks: in order.
        figures: folder of the figures, as the text should link to it; None leaves them out.
    """
    written = []
    for block in blocks:
        if isinstance(block, Heading):
            written.append("#" * block.level + " " + _md((block.text,)))
        elif isinstance(block, Paragraph):
            written.append(_md(block.text))
        elif isinstance(block, Bullets):
            written.append("\n".join("- " + _md(item) for item in block.items))
        elif isinstance(block, Table):
            written.append(_md_table(block))
        elif figures is not None:
            at = f"{figures}/{block.name}"
            written.append(f"[![{_md((block.alt,))}]({at}.png)]({at}.svg)\n\n{_md(block.caption)}")
    return "\n\n".join(text for text in written if text) + "\n"


def _md_table(table: Table) -> str:
    lines = [[_md((column.title,)) for column in table.columns]]
    lines += [[marked(_md(one.text), one.mark, "**", "**", " ≈") for one in row] for row in table.rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "|".join(" ---: " if numeric else " --- " for numeric in numbers(table)) + "|")
    parts = [_md(table.caption), "\n".join(text), _md(table.note), "\n".join("- " + _md(d) for d in table.definitions)]
    return "\n\n".join(part for part in parts if part)


def _md(text: Words) -> str:
    return "".join(_md_code(piece) if isinstance(piece, Code) else _md_plain(piece) for piece in text)


def _md_code(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`"


def _md_plain(text: str) -> str:
    return re.sub(r"([\\`*|<]|(?<!\w)_|_(?!\w))", r"\\\1", text.replace("\n", " "))


def marked(text: str, mark: str, begin: str, end: str, tied: str) -> str:
    """A cell's text between `begin` and `end` where it is the best, before `tied` where it is not told from that."""
    return begin + text + end if mark == "best" else text + tied if mark == "tied" else text


def numbers(table: Table) -> list[bool]:
    """Whether each column is one of numbers, which stand to the right."""
    return [bool(column.raw) for column in table.columns]


# ---- CSV


def table_csv(table: Table) -> str:
    """A table as CSV: where a cell has numbers behind it, these and not the text, at full precision; empty = none."""
    header, width = [], []
    for column in table.columns:
        header += [" ".join([column.title, name]).strip() for name in column.raw] or [column.title]
        width.append(len(column.raw))
    lines = []
    for row in table.rows:
        line: list[object] = []
        for one, size in zip(row, width, strict=True):
            line += [*one.raw, *[None] * (size - len(one.raw))] if size else [plain(one.text)]
        lines.append(line)
    return csv_text(header, lines)


def csv_text(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """Lines under a header, as spreadsheets read them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
