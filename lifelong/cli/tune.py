"""`lifelong tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lifelong.cli.errors import say
from lifelong.cli.options import Shared, Store, StreamName, quiet_option, with_shared
from lifelong.cli.progress import progress_bar
from lifelong.cli.tables import plain_table

if TYPE_CHECKING:
    from lifelong.experiments.choice import Choice

Strategies = Annotated[list[str], typer.Argument(
    help="Strategies with lists of values to choose from, for example \"ewc(strength=[1,10,100])\".")]
Seeds = Annotated[int, typer.Option(help="Number of seeds to tune on. They differ from the seeds of `lifelong run`.")]
FirstTasks = Annotated[int | None, typer.Option(help="Train on this many tasks only, the first ones of the stream.")]
On = Annotated[str | None, typer.Option(
    help="Tune on another stream, which has other classes, for example \"split-omniglot(part='background')\".")]
Quiet = Annotated[bool, quiet_option("Show no progress bar and print only the name of the file.")]


@with_shared
def tune(stream: StreamName, strategies: Strategies, *, store: Store = Path("runs"), seeds: Seeds = 5,
         first_tasks: FirstTasks = None, on: On = None, shared: Shared, quiet: Quiet = False) -> None:
    """Choose hyper-parameters without using the test examples.

    Every combination of the listed values is trained on streams of other seeds
    and scored on training examples that were held out or, with --on, on the
    test examples of another stream. The last line that is printed is the
    command that runs the chosen values.
    """
    from lifelong.experiments import tuning

    with progress_bar(quiet) as watcher:
        found = tuning.tune(stream, strategies, shared.options(seeds=seeds), shared.stream_options, root=store,
                            first_tasks=first_tasks, on=on, watcher=watcher)
    if not quiet:
        for choice in found.choices:
            _print_choice(choice, "held-out training examples" if on is None else f"test examples of {on}")
    for failure in found.failures:
        say(failure)
    if found.file:
        print(found.file if quiet else _command(stream, found.file, store, shared))
    raise typer.Exit(1 if found.failures else 0)


def _command(stream: str, file: Path, store: Path, shared: Shared) -> str:
    """The command that runs what was chosen."""
    words = ["lifelong", "run", stream, "--tuned", str(file), *shared.words(without=("optimizer", "model"))]
    return shlex.join([*words, *([] if store == Path("runs") else ["--store", str(store)])])


def _print_choice(choice: Choice, examples: str) -> None:
    """Prints the settings of one strategy, best first, and which of them the seeds can tell apart."""
    from rich.console import Console
    from rich.text import Text

    from lifelong.experiments.choice import shown

    table = plain_table(choice.asked)
    for name in [*choice.best.values, "accuracy", "behind", ""]:
        table.add_column(Text(name), justify="right" if name else "left")
    for tried in choice.tried:
        (mean, half), behind = tried.score, choice.behind(tried) if tried is not choice.best else None
        note = "chosen" if tried is choice.best else "not distinguishable" if tried in choice.alike else ""
        table.add_row(*map(shown, tried.values.values()),
                      "diverged" if mean != mean else f"{100 * mean:.1f} ± {100 * half:.1f}".removesuffix(" ± nan"),
                      "" if behind is None else f"{100 * behind.mean:.1f} ± {100 * behind.half_width:.1f}", note)
    console = Console()
    console.print(table)
    for sentence in (choice.verdict, *choice.edges):
        console.print(Text(sentence))
    n = len(choice.best.accuracy)
    over = f"mean ± half width of the 95 % t interval over {n} seeds" if n > 1 else "one seed, so without an interval"
    console.print(Text(f"Values are percentages of {examples}: {over}. Training {len(choice.tried)} settings took "
                       f"{choice.seconds:g} s.\n"))
