"""The blocks that a report consists of, and their Markdown and CSV; html.py has the page, latex.py the LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple


class Code(str):
    """Text typed by a user: set in a monospaced font and never interpreted as markup."""


Words = tuple[str, ...]  # the pieces of a sentence, plain text or Code


def words(*pieces: str | Words) -> Words:
    """The pieces as one sequence."""
    return tuple(w for piece in pieces for w in ([piece] if isinstance(piece, str) else piece))


def joined(several: Sequence[Words], between: str = " ") -> Words:
    """Several texts as one, with `between` between them; empty ones are skipped."""
    return words(*(piece for one in several if one for piece in (between, one)))[1:]


def plain(text: Words) -> str:
    """The text without its markup."""
    return "".join(text)


class Column(NamedTuple):
    """The title of a column, and the names of the numbers behind its cells, which CSV has instead of the text."""

    title: str
    raw: tuple[str, ...] = ()


class Cell(NamedTuple):
    """The text of a cell, the numbers behind it, and a mark: `best` of its column, or `tied` with the best."""

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
    """The blocks as Markdown with GitHub's tables.

    Args:
        blocks: the blocks.
        figures: path of the folder of figures in links; None omits the figures.
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
            alt = re.sub(r"(?<!\\)([\[\]])", r"\\\1", _md((block.alt,)))
            written.append(f"[![{alt}]({at}.png)]({at}.svg)\n\n{_md(block.caption)}")
    return "\n\n".join(text for text in written if text) + "\n"


def _md_table(table: Table) -> str:
    lines = [[_md((column.title,), "|") for column in table.columns]]
    lines += [[marked(_md(one.text, "|"), one.mark, "**", "**", " ≈") for one in row] for row in table.rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "|".join(" ---: " if numeric else " --- " for numeric in numbers(table)) + "|")
    parts = [_md(table.caption), "\n".join(text), _md(table.note), "\n".join("- " + _md(d) for d in table.definitions)]
    return "\n\n".join(part for part in parts if part)


def _md(text: Words, apart: str = "") -> str:
    """Markdown that is displayed as `text`; `apart` is the character that separates the cells of a table."""
    code = [(is_code, "".join(pieces)) for is_code, pieces in groupby(text, lambda piece: isinstance(piece, Code))]
    return "".join(_md_code(piece, apart) if is_code else _md_plain(piece) for is_code, piece in code)


def _md_code(text: str, apart: str) -> str:
    text = " ".join(text.split())
    text = text.replace(apart, "\\" + apart) if apart else text
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}" if len(ticks) > 1 else f"`{text}`" if text else ""


def _md_plain(text: str) -> str:
    """Text with a backslash before characters that would be markup.

    These include brackets only at the end of a possible link, and underscores only at the ends of words.
    """
    meant = r"([\\`*|<~$]|\](?=[(\[])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_]))"
    return re.sub(meant, r"\\\1", text.replace("\n", " "))


def marked(text: str, mark: str, begin: str, end: str, tied: str) -> str:
    """The text of a cell, between `begin` and `end` if its mark is `best`, and followed by `tied` if it is `tied`."""
    return begin + text + end if mark == "best" else text + tied if mark == "tied" else text


def numbers(table: Table) -> list[bool]:
    """For each column whether it has numbers, which are aligned to the right."""
    return [bool(column.raw) for column in table.columns]


# ---- CSV


def table_csv(table: Table) -> str:
    """A table as CSV; cells with numbers give these at full precision instead of their text, missing ones are empty."""
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
    """A header and lines as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
