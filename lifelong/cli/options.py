"""The options of the commands, each with its help; those that `run` and `tune` share are written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lifelong.cli.errors import flag

if TYPE_CHECKING:
    from lifelong.spec.run import Options

STREAM, TRAINING, MACHINE = "Stream", "Training", "Machine and data"  # groups of options in the help

StreamName = Annotated[str, typer.Argument(help="Stream, for example rotated-digits or \"split-mnist(tasks=5)\".")]
Store = Annotated[Path, typer.Option(help="Folder in which runs and starts are stored.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def quiet_option(text: str) -> Any:
    """The option `--quiet`, which also hides the progress of what has no watcher, such as decoding."""
    def hide_progress(quiet: bool) -> bool:
        from lifelong import progress

        progress.shown = not quiet
        return quiet

    return typer.Option("--quiet", callback=hide_progress, help=text)


Quiet = Annotated[bool, quiet_option("Show no progress bar and print no results.")]
Data = Annotated[str | None, typer.Option(
    help="Folder of the raw data. Default: $LIFELONG_DATA, or the user's cache folder where that is not set.",
    rich_help_panel=MACHINE)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.", rich_help_panel=MACHINE)]
Trust = Annotated[bool, typer.Option(
    "--trust", help="Run Python files that are named only in a file: of --from, of --tuned, or of a start. Read them "
                    "first: they can do whatever you can.")]
SaveEvery = Annotated[float, typer.Option(help="Seconds between checkpoints.", rich_help_panel=MACHINE)]
Scenario = Annotated[str | None, typer.Option(help="task, domain or class: the kind of incremental learning.",
                                              rich_help_panel=STREAM)]
Tasks = Annotated[int | None, typer.Option(help="Number of tasks.", rich_help_panel=STREAM)]
ClassesPerTask = Annotated[int | None, typer.Option(help="Number of classes in each task.", rich_help_panel=STREAM)]
Boundaries = Annotated[bool | None, typer.Option("--boundaries/--no-boundaries", rich_help_panel=STREAM,
                                                 help="Whether learners are told where each task ends.")]
Augment = Annotated[str | None, typer.Option(
    help="Random augmentation of the training images, for example \"crop(padding=4) + flip\", or none. Default: the "
         "augmentation that the stream defines.", rich_help_panel=STREAM)]
Overlap = Annotated[bool, typer.Option(
    "--overlap", help="Accept a start (and in `lifelong tune` a stream of --on) that uses classes which the stream "
                      "tests on. The record of each run says so.", rich_help_panel=STREAM)]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training data of each task. Default: defined by the "
                                                 "stream.", rich_help_panel=TRAINING)]
Steps = Annotated[int | None, typer.Option(help="Training steps per task, instead of --epochs.",
                                           rich_help_panel=TRAINING)]
BatchSize = Annotated[int | None, typer.Option(help="Examples per training step. Default: defined by the stream.",
                                               rich_help_panel=TRAINING)]
Optimizer = Annotated[str | None, typer.Option(
    help="Optimizer, for example \"adam(lr=1e-3)\"; \"sgd(lr=[0.03,0.1])\" trains with each of the listed values. "
         "Default: defined by the stream.", rich_help_panel=TRAINING)]
Model = Annotated[str | None, typer.Option(
    help="Network, for example \"mlp(hidden=(256,256))\" or ./net.py:my_net. Default: defined by the stream.",
    rich_help_panel=TRAINING)]
Dtype = Annotated[str, typer.Option(help="float32, float64, or bfloat16, which computes only the network in bfloat16.",
                                    rich_help_panel=TRAINING)]
Memory = Annotated[float | None, typer.Option(
    help="GiB of memory that training may use. Runs that do not fit together are trained one group after another. "
         "Default: 80 % of the free memory.", rich_help_panel=MACHINE)]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options that `lifelong run` and `lifelong tune` have in common, with the values that were typed."""

    scenario: Scenario = None
    tasks: Tasks = None
    classes_per_task: ClassesPerTask = None
    boundaries: Boundaries = None
    augment: Augment = None
    overlap: Overlap = False
    epochs: Epochs = None
    steps: Steps = None
    batch_size: BatchSize = None
    optimizer: Optimizer = None
    model: Model = None
    dtype: Dtype = "float32"
    data: Data = None
    device: Device = "auto"
    memory: Memory = None
    save_every: SaveEvery = 30.0

    @property
    def stream_options(self) -> dict[str, Any]:
        """The options of the stream that were typed."""
        return {name: value for name, value in vars(self).items() if name in _OF_STREAM and value is not None}

    def options(self, **more: Any) -> Options:
        """`Options` of a run with these values and `more`."""
        from lifelong.spec.run import Options

        return Options(**{name: value for name, value in vars(self).items() if name not in _OF_STREAM}, **more)

    def words(self, *, without: tuple[str, ...] = ()) -> list[str]:
        """What has to be typed to get these values again, except for the fields `without`."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in without and value != field.default:
                no = "no-" if value is False else ""
                words += [flag(no + field.name), *([] if isinstance(value, bool) else [str(value)])]
        return words


_OF_STREAM = ("scenario", "tasks", "classes_per_task", "boundaries")  # the stream's own; all others are of a run


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every field of `Shared`, in place of its parameter `shared`."""
    options = inspect.signature(Shared, eval_str=True).parameters

    @functools.wraps(command)
    def flat(**typed: Any) -> None:
        command(shared=Shared(**{name: typed.pop(name) for name in options}), **typed)

    own = inspect.signature(command, eval_str=True).parameters
    every = [p for name, parameter in own.items() for p in (options.values() if name == "shared" else [parameter])]
    flat.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.KEYWORD_ONLY) for p in every])
    return flat
