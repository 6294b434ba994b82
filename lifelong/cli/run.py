"""`lifelong run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lifelong.cli.errors import flag, say
from lifelong.cli.options import Quiet, Shared, Store, Trust, with_shared
from lifelong.cli.progress import progress_bar
from lifelong.cli.tables import print_results

if TYPE_CHECKING:
    from lifelong.experiments.experiment import Experiment, Outcome
    from lifelong.spec.run import Options

DEFAULTS = ["finetune", "er", "ewc", "er + ewc", "joint"]

OptionalStream = Annotated[str | None, typer.Argument(
    help="Stream, for example rotated-digits or \"split-mnist(tasks=5)\".")]
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
From = Annotated[Path | None, typer.Option(
    "--from", help="Repeat the runs of a file instead of those of STREAM and STRATEGIES. The file is the run.json of a "
                   "run, or JSON with one spec or a list of specs. Python files that it names are run only with "
                   "--trust.")]


@with_shared
def run(stream: OptionalStream = None, strategies: Strategies = None, *, store: Store = Path("runs"), seeds: Seeds = 5,
        shared: Shared, tuned: Tuned = None, from_: From = None, trust: Trust = False, log: Log = None,
        eval_every: EvalEvery = 0, evaluate: Evaluate = None, quiet: Quiet = False) -> None:
    """Train strategies on a stream and compare them.

    Running a command again reuses the runs that are finished and resumes those
    that were interrupted.
    """
    from lifelong.experiments.experiment import run_all
    from lifelong.store.loggers import Loggers

    options = shared.options(seeds=seeds, eval_every=eval_every, evaluate=evaluate, trust=trust)
    if from_ is None:
        experiments = [_experiment(stream, strategies or [], tuned, trust, shared, options)]
    else:
        experiments = _repeated(from_, stream, tuned, trust, shared, options)
    loggers = Loggers(log or [], store / "log")
    with loggers, progress_bar(quiet, loggers.made) as watcher:
        outcome = run_all(experiments, store, watcher)
    if not quiet:
        if outcome.found:
            total = sum(len(experiment.specs) for experiment in experiments)
            print(f"{outcome.found} of {total} runs were finished already and are reused from {store}")
        if outcome.runs:
            print_results(outcome.runs, store / "latest")
        if log:
            print(f"logs: {', '.join(str(store / 'log' / kind) for kind in loggers.kinds)}")
    for sentence in (*outcome.failures, *loggers.warnings):
        say(sentence)
    raise typer.Exit(_exit_code(outcome))


def _experiment(stream: str | None, strategies: list[str], tuned: Path | None, trust: bool, shared: Shared,
                options: Options) -> Experiment:
    if stream is None:
        raise ValueError("give a stream, for example `lifelong run rotated-digits`; `lifelong list` prints all of them")
    if tuned is None:
        from lifelong.experiments.prepare import prepare

        return prepare(stream, strategies or DEFAULTS, options, shared.stream_options)
    from lifelong.experiments.tuning import chosen

    return chosen(tuned, stream, strategies, options, shared.stream_options, trust=trust)


def _repeated(file: Path, stream: str | None, tuned: Path | None, trust: bool, shared: Shared,
              options: Options) -> list[Experiment]:
    """The experiments that make the runs of a file of specs."""
    from lifelong.experiments.again import again, read

    typed = {"STREAM": stream, "--tuned": tuned, **{flag(name): one for name, one in shared.stream_options.items()}}
    if given := [name for name, value in typed.items() if value is not None]:
        raise ValueError(f"{given[0]} is part of what the file of --from says: leave {given[0]} out, or --from")
    return again(read(file), options, trust=trust)


def _exit_code(outcome: Outcome) -> int:
    if outcome.damaged:
        return 3
    return 1 if outcome.failures or any(run.about["status"] == "diverged" for run in outcome.runs) else 0
