"""What was measured as tables: printed, and written as Markdown and CSV with the machine's description."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import rich.box
import rich.table
import torch
from rich.console import Console


class Observation(NamedTuple):
    """One number: what was done, by whom, in which round."""

    part: str
    case: str
    contender: str
    round: int
    value: float
    unit: str


@dataclass
class Table:
    """A title, a header, rows of text, and notes that stand below."""

    title: str
    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Prints it."""
        table = rich.table.Table(title=self.title, box=rich.box.SIMPLE, title_justify="left")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="left" if i < 2 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}", highlight=False, markup=False)

    def markdown(self) -> str:
        """The same for a file."""
        align = ["---" if i < 2 else "---:" for i in range(len(self.header))]
        lines = [f"| {' | '.join(row)} |" for row in (self.header, align, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, "", *(f"- {note}" for note in self.notes), ""])


def interleaved(runs: Mapping[str, Callable[[], float]], repeats: int,
                tell: Callable[[str], None]) -> dict[str, list[float]]:
    """The values of every run, in rounds: A B C, A B C, and so on; a first round is not counted.

    Args:
        runs: by name, each does its work once and returns a rate.
        repeats: rounds.
        tell: is told of progress.
    """
    values: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            tell(f"{name}: " + (f"round {i} of {repeats}" if i else "warm-up"))
            value = run()
            if i:
                values[name].append(value)
    return values


@dataclass
class Record:
    """What a part of the benchmark adds to."""

    repeats: int
    console: Console
    tables: list[Table] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

    def compare(self, part: str, case: str, runs: Mapping[str, Callable[[], float]],
                unit: str) -> dict[str, list[float]]:
        """The values of all runs, interleaved and kept."""
        with self.console.status(case) as status:
            values = interleaved(runs, self.repeats, lambda text: status.update(f"{part} {case}, {text}"))
        self.keep(part, case, values, unit)
        return values

    def keep(self, part: str, case: str, values: dict[str, list[float]], unit: str) -> None:
        """Keeps numbers for the CSV file."""
        self.observations += [Observation(part, case, name, i, value, unit)
                              for name, rounds in values.items() for i, value in enumerate(rounds)]

    def add(self, table: Table) -> None:
        """Prints a table and keeps it for the Markdown file."""
        table.show(self.console)
        self.tables.append(table)


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(mine: Sequence[float], others: Sequence[float] | None) -> str:
    """How many times the others' rate mine is, round by round: median (least to most)."""
    if not others:
        return "-"
    each = [a / b for a, b in zip(mine, others, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def machine(device: str, threads: int) -> dict[str, str]:
    """What the numbers depend on beside the code."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines()
                    if line.startswith("model name")), cpu)
    about = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "commit": commit(), "processor": cpu,
             "cores": str(os.cpu_count()), "threads": str(threads), "device": device,
             "python": platform.python_version(), "torch": torch.__version__}
    if device == "cuda":
        about["card"] = torch.cuda.get_device_name()
    if hasattr(os, "getloadavg"):
        about["load at the start"] = f"{os.getloadavg()[0]:.1f} (other work ran if this is far above 0)"
    return about


def commit() -> str:
    """The commit of this checkout, with + where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write(folder: Path, name: str, about: dict[str, str], tables: Sequence[Table],
          observations: Sequence[Observation]) -> list[Path]:
    """Writes `name`.md and `name`.csv, the tables and every single number, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "reports/speed/benchmark.py", *sys.argv[1:]])
    lines = [f"# {name}", "", f"`{command}`", "", *(f"- {k}: {v}" for k, v in about.items()), ""]
    text, numbers = folder / f"{name}.md", folder / f"{name}.csv"
    text.write_text("\n".join([*lines, *(table.markdown() for table in tables)]))
    with numbers.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Observation._fields, *about])
        writer.writerows([*row, *about.values()] for row in observations)
    return [text, numbers]
