"""The command line: its commands, and one sentence and an exit code for every error.

The docstring of a command is its help, in which typer keeps line breaks: its lines are shorter than a terminal.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lifelong.cli import catalogue, check, report, run, starts, tune
from lifelong.cli.errors import INTERRUPTED, explain, say
from lifelong.version import __version__

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})
app.command("list")(catalogue.list_)
for command in (run.run, tune.tune, starts.pretrain, starts.fewshot, report.report, check.check):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        from platform import python_version

        from lifelong.provenance import commit

        checkout = f" (commit {found})" if (found := commit()) else ""
        print(f"lifelong {__version__}{checkout}, torch {version('torch')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version,
                                                help="Show the version and exit.")] = False) -> None:
    """Continual learning: run benchmarks, compare forgetting curves, plug in new strategies."""


def main() -> None:
    """Runs the command line. An error that the user can correct ends in one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False) or 0
    except Exception as error:
        explain(error)
        code = 2
    if code == INTERRUPTED:
        say("interrupted; run the same command again to continue from the last checkpoint")
    sys.exit(code)
