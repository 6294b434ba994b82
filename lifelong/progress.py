"""Progress: what is told while something is trained, and whether bars are drawn while data is decoded."""

from __future__ import annotations

from typing import Any

shown = True  # whether decoding may draw a bar on the terminal; the command line sets it by --quiet


class Watcher:
    """What is told of progress; this one says nothing, the command line's draws a bar."""

    def begin(self, title: str) -> None:
        """A stack begins."""

    def advance(self, share: float) -> None:
        """The stack is done to this share, 0 to 1."""

    def end(self) -> None:
        """The stack has ended."""

    def say(self, sentence: str) -> None:
        """Something the user should know."""

    def made(self, run: Any) -> None:
        """A `Run` is there: it was found in the store, or trained."""
