"""Tables of results, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as Printed

    from lifelong.report.document import Table
    from lifelong.store.records import Run

# Columns of the metrics that a narrow terminal leaves out, the first one first.
SPARE = ("learning accuracy", "forward transfer", "intransigence", "average incremental accuracy", "backward transfer",
         "seeds")


def print_results(runs: list[Run], folder: Path) -> None:
    """Prints a table of `runs` for each stream, and writes a short report with two figures into `folder`."""
    from rich.console import Console
    from rich.text import Text

    from lifelong import report

    paths = report.write(runs, folder, only=("curves", "tasks"))
    console = Console()
    for group in report.groups(runs):
        print_tables(report.tables_of(group), group.title)
    kind = "percentages: " if all(group.score.percent for group in report.groups(runs)) else ""
    console.print(Text(f"Values are {kind}mean ± half width of the 95 % t interval over seeds. report.md and "
                       "report.html define every metric and test the differences between strategies; `lifelong report` "
                       "draws all figures."))
    for run in runs:
        if run.about["note"]:
            console.print(Text(f"{run.spec['strategy']}: {run.about['note']}"))
    print(f"table: {', '.join(map(str, paths[:3]))}")
    if figures := [str(path) for path in paths if path.suffix == ".png"]:
        print(f"figures: {', '.join(figures)}")


def print_tables(tables: Sequence[Table], heading: str) -> None:
    """Prints tables of a report: of metrics, by length, as other frameworks compute them, of few-shot evaluations."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for table in tables:
        cells = [["".join(cell.text) + " ≈" * (cell.mark == "tied") for cell in row] for row in table.rows]
        header, rows = _fitting([column.title for column in table.columns], cells, console.width, _spare(table))
        title = "\n".join(["".join(table.caption), heading]).strip()
        printed = plain_table(title)
        for i, name in enumerate(header):
            printed.add_column(Text(name.replace(" ", "\n", 1)), justify="left" if i == 0 else "right",
                               no_wrap=i > 0, overflow="fold")
        for row in rows:
            printed.add_row(*map(Text, row))
        console.print(printed)


def plain_table(title: str) -> Printed:
    """An empty table with a title."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title, overflow="fold"), title_justify="left", box=SIMPLE)


def _spare(table: Table) -> tuple[str, ...]:
    """The columns that a narrow terminal leaves out, the first one first."""
    titles = [column.title for column in table.columns]
    if table.name.endswith("-metrics"):
        return SPARE
    if table.name.startswith("few-shot-"):
        return ("seed", "episodes")
    if table.name.endswith("-lengths"):
        return tuple(reversed(titles[3:-1]))  # the longest stream stays
    return tuple(reversed(titles[2:]))


def _fitting(header: list[str], rows: list[list[str]], width: int,
             spare: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """The table without as many of the columns `spare` as it takes to fit into `width` characters."""
    for left_out in ("no column", *spare):
        keep = [i for i, title in enumerate(header) if title != left_out]
        header, rows = [header[i] for i in keep], [[row[i] for i in keep] for row in rows]
        if not rows:
            break
        needed = [max(map(len, [*(row[i] for row in rows), *title.split(" ", 1)])) for i, title in enumerate(header)]
        if min(needed[0], 30) + sum(needed[1:]) + 3 * len(header) <= width:
            break
    return header, rows
