"""Schedules of evaluation: the tasks that are evaluated after each task."""

from __future__ import annotations

import re
from typing import NamedTuple

SCOPES = ("all", "seen", "current")  # each includes the tasks of the scopes after it
_TERM = re.compile(rf"({'|'.join(SCOPES)})(?::(\d+))?")


class Evaluation(NamedTuple):
    """A schedule of evaluations: for every scope, the number of tasks between evaluations; 0 means never.

    It is written as a sum of scopes, each with `:K` if it is evaluated only after every K-th task and the last one:
    `all`, `seen`, `all:10`, `current + all:100`.

    Attributes:
        all: all tasks of the stream, including those not learned yet; also before the first task.
        seen: the tasks learned so far.
        current: the task just learned.
    """

    all: int = 0
    seen: int = 0
    current: int = 0

    @classmethod
    def parse(cls, text: str) -> Evaluation:
        """The schedule that `text` describes.

        Raises:
            ValueError: `text` is not a sum of scopes.
        """
        found: dict[str, int] = {}
        for term in str(text).split("+"):
            match = _TERM.fullmatch(term.strip())
            if match is None or match[1] in found or (match[2] is not None and int(match[2]) == 0):
                raise ValueError("an evaluation schedule is all, seen or current, each with :K for only after every "
                                 f"K-th task, or a sum of these, such as current + all:100; got {text!r}")
            found[match[1]] = int(match[2] or 1)
        return cls(**found)

    def __str__(self) -> str:
        return " + ".join(scope if every == 1 else f"{scope}:{every}"
                          for scope, every in zip(SCOPES, self, strict=True) if every)

    def tasks(self, learned: int, n_tasks: int) -> range:
        """The tasks, counted from 0, that are evaluated after `learned` of the `n_tasks` tasks."""
        due = [scope for scope, every in zip(SCOPES, self, strict=True)
               if every and (learned % every == 0 or learned == n_tasks)]
        if not due:
            return range(0)
        widest = due[0]
        return range(max(0, learned - 1) if widest == "current" else 0, n_tasks if widest == "all" else learned)
