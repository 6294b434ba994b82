"""`lifelong check`."""

from __future__ import annotations

import re
from typing import Annotated

import typer


def check(strategy: Annotated[str, typer.Argument(help="Strategy, for example ./mine.py:my_strategy or "
                                                       "\"er + ewc\".")]) -> None:
    """Check that a strategy follows the rules for strategies.

    For example: its functions are pure, seeds that are trained together give
    what each gives alone, an interrupted run resumes to the same values, and the
    size of its state does not change. The strategies of lifelong pass all checks.
    """
    from lifelong.experiments.contract import run_checks

    seen: set[str] = set()
    for name, problem in run_checks(strategy):
        name = name.replace("_", " ")
        if problem is None:
            print(f"ok     {name}")
            continue
        message = re.sub(r"\d+", "", problem)  # the sizes in it differ from check to check
        print(f"wrong  {name}: {'the same problem' if message in seen else problem}")
        seen.add(message)
    if seen:
        raise typer.Exit(1)
    print(f"{strategy} passes all checks")
