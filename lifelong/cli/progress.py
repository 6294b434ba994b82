"""The progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lifelong.progress import Watcher
    from lifelong.store.records import Run


def progress_bar(quiet: bool, made: Callable[[Run], None] = lambda run: None) -> AbstractContextManager[Watcher]:
    """A context manager whose value shows progress and the time left on the terminal.

    Args:
        quiet: whether nothing is shown.
        made: is called with every run that is finished or found.
    """
    from rich import progress

    from lifelong.machine import keep_pages
    from lifelong.progress import Watcher

    keep_pages()  # of the command line's own process alone

    class Silent(Watcher):
        """Shows nothing."""

        drawn = 0.0  # the share that the bar shows

        def made(self, run: Run) -> None:
            made(run)

    class Bar(Silent):
        """Draws a bar."""

        def begin(self, title: str) -> None:
            bar.start()
            self.task, self.drawn = bar.add_task(title if len(title) < 40 else title[:37] + "...", total=1.0), 0.0

        def advance(self, share: float) -> None:
            if share - self.drawn > 0.002 or share >= 1:  # drawing costs more than most training steps
                bar.update(self.task, completed=share)
                self.drawn = share

        def say(self, sentence: str) -> None:
            bar.console.print(sentence, markup=False)

    if quiet:
        return contextlib.nullcontext(Silent())
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(), progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())

    @contextlib.contextmanager
    def shown() -> Iterator[Watcher]:
        try:
            yield Bar()
        finally:
            bar.stop()

    return shown()
