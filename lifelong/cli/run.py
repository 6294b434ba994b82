"""`lifelong run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lifelong.cli.errors import say
from lifelong.cli.options import Quiet, Shared, Store, StreamName, with_shared
from lifelong.cli.progress import progress_bar
from lifelong.cli.tables import print_results

if TYPE_CHECKING:
    from lifelong.experiments.experiment import Experiment, Outcome
    from lifelong.spec.run import Options

DEFAULTS = ["finetune", "er", "ewc", "er + ewc", "joint"]

Strategies = Annotated[list[str] | None, typer.Argument(
    help="Strategies, for example er \"er(capacity=500) + ewc(strength=[1,10])\" ./mine.py:my_strategy. Default: "
         + ", ".join(DEFAULTS) + ".")]
Seeds = Annotated[int, typer.Option(help="Number of seeds. All seeds are trained at the same time.")]
Tuned = Annotated[Path | None, typer.Option(
    help="File written by `lifelong tune`: also run the strategies in it, with the hyper-parameters and optimizers "
         "that were chosen.")]
Log = Annotated[list[str] | None, typer.Option(
    help="Also write every run to csv, tensorboard or wandb (wandb is offline unless $WANDB_MODE is set). Can be given "
         "more than once.")]
EvalEvery = Annotated[int, typer.Option(help="Also evaluate every so many training steps within a task; 0: never.")]

Evaluate = Annotated[str | None, typer.Option(
    help="Tasks that are evaluated after every task: all, seen or current; all:10 evaluates after every tenth task and "
         "the last one only; current+all:100 does both. Default: defined by the stream.")]


@with_shared
def run(stream: StreamName, strategies: Strategies = None, *, store: Store = Path("runs"), seeds: Seeds = 5,
        shared: Shared, tuned: Tuned = None, log: Log = None, eval_every: EvalEvery = 0,
        evaluate: Evaluate = None, quiet: Quiet = False) -> None:
    """Train strategies on a stream and compare them.

    Running a command again reuses the runs that are finished and resumes those
    that were interrupted.
    """
    from lifelong.store.loggers import Loggers

    options = shared.options(seeds=seeds, eval_every=eval_every, evaluate=evaluate)
    experiment = _experiment(stream, strategies or [], tuned, shared, options)
    loggers = Loggers(log or [], store / "log")
    with loggers, progress_bar(quiet, loggers.made) as watcher:
        outcome = experiment.run(store, watcher)
    if not quiet:
        if outcome.found:
            print(f"{outcome.found} of {len(experiment.settings)} runs were finished already and are reused from "
                  f"{store}")
        if outcome.runs:
            print_results(outcome.runs, store / "latest")
        if log:
            print(f"logs: {', '.join(str(store / 'log' / kind) for kind in loggers.kinds)}")
    for sentence in (*outcome.failures, *loggers.warnings):
        say(sentence)
    raise typer.Exit(_exit_code(outcome))


def _experiment(stream: str, strategies: list[str], tuned: Path | None, shared: Shared,
                options: Options) -> Experiment:
    if tuned is None:
        from lifelong.experiments.prepare import prepare

        return prepare(stream, strategies or DEFAULTS, options, shared.stream_options)
    from lifelong.experiments.tuning import chosen

    return chosen(tuned, stream, strategies, options, shared.stream_options)


def _exit_code(outcome: Outcome) -> int:
    if outcome.damaged:
        return 3
    return 1 if outcome.failures or any(run.about["status"] == "diverged" for run in outcome.runs) else 0
