"""`lifelong pretrain` and `lifelong fewshot`: starts are learned and evaluated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lifelong.cli.errors import say
from lifelong.cli.options import Data, Device, Json, SaveEvery, Store, Trust, quiet_option
from lifelong.cli.progress import progress_bar

if TYPE_CHECKING:
    from lifelong.starts.fewshot import Evaluation
    from lifelong.starts.pretrain import Pretraining
    from lifelong.starts.weights import Weights

Quiet = Annotated[bool, quiet_option("Show no progress bar.")]
Precision = Annotated[str, typer.Option(
    help="float32, float64, or bfloat16, which computes only matrix products and convolutions in bfloat16.")]


def pretrain(
    source: Annotated[str, typer.Argument(help="Source of classes to learn from, for example glyphs or "
                                               "\"omniglot(size=84)\".")],
    start: Annotated[str, typer.Argument(help="Start to learn, for example oml or \"protonet(steps=5000)\".")],
    out: Annotated[Path | None, typer.Option(help="File to write the start to, in addition to the store.")] = None,
    store: Store = Path("runs"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    precision: Precision = "float32",
    data: Data = None,
    device: Device = "auto",
    save_every: SaveEvery = 30.0,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Learn a start, from which many runs can begin.

    Running a command again reuses a start that is finished and resumes one that
    was interrupted.
    """
    from lifelong.experiments import prepare
    from lifelong.spec import plugins
    from lifelong.starts.pretrain import Pretraining, make_source, parse
    from lifelong.starts.recipe import Diverged
    from lifelong.starts.weights import save

    term = parse(start)
    with plugins.trusting_records() if trust else nullcontext():
        pretraining = Pretraining(term, make_source(source, data), seed=seed, device=prepare.device(device),
                                  precision=precision)
    if out is not None:
        _check_file(out)
    try:
        with progress_bar(quiet) as watcher:
            weights = pretraining.found(store) or pretraining.run(store, watcher, save_every)
    except Diverged as error:
        say(str(error))
        raise typer.Exit(2) from None
    if out is not None:
        save(out, weights)
    if not quiet:
        about, file = weights.about, out if out is not None else pretraining.path(store)
        print(f"{about['strategy']}: {about['steps']} steps on {about['source']} in {about['seconds']:.0f} s, "
              f"{progress_of(about)}\nfile: {file}\n"
              f"lifelong run STREAM \"{str(term).partition('(')[0]}(file='{file}') + er\"")


def _check_file(out: Path) -> None:
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} to")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"--out must be a file such as {out.with_suffix('')}.safetensors, got "
                         f"{'the folder ' if out.is_dir() else ''}{out}")


def progress_of(about: Mapping[str, Any]) -> str:
    """The loss, and whatever else was logged, at the first and the last step of a start's learning."""
    logs = {"loss": about["loss"], **about.get("logs", {})}
    first, last = ({name: "nan" if log[i] is None else f"{log[i]:.3g}" for name, log in logs.items()} for i in (0, -1))
    return ", ".join(f"{name} {first[name]} at the first and {last[name]} at the last step" for name in logs)


def fewshot(
    source: Annotated[str, typer.Argument(help="Source of the classes, for example \"omniglot(part='evaluation')\".")],
    start: Annotated[str, typer.Argument(help="File written by `lifelong pretrain`, or a start such as "
                                              "\"protonet(file='FILE')\" or \"maml(source='omniglot')\".")],
    way: Annotated[int, typer.Option(help="Classes per episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Labelled examples per class.")] = 1,
    queries: Annotated[int, typer.Option(help="Examples per class that are classified.")] = 15,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the episodes.")] = 0,
    overlap: Annotated[bool, typer.Option("--overlap", help="Allow a start that was learned on some of these "
                                                            "classes.")] = False,
    transductive: Annotated[bool, typer.Option(
        help="For networks with batch normalisation, also classify all queries of an episode together. This takes most "
             "of the time.")] = True,
    trust: Trust = False,
    store: Store = Path("runs"),
    data: Data = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Evaluate a start on few-shot classification.

    Each episode shows a few labelled examples of classes that are new to the
    start and asks it to classify further examples of them. Results are kept in
    the store; running a command again prints them.
    """
    from lifelong import store as stores
    from lifelong.experiments import prepare
    from lifelong.spec import plugins
    from lifelong.starts.fewshot import Evaluation, find
    from lifelong.starts.pretrain import Pretraining, make_source

    where, quiet = prepare.device(device), quiet or as_json
    evaluation = partial(Evaluation, make_source(source, data), way=way, shots=shots, queries=queries,
                         episodes=episodes, seed=seed, device=where, overlap=overlap, together=transductive)
    with plugins.trusting_records() if trust else nullcontext():
        weights = find(start, where, data, store)
    if isinstance(weights, Pretraining):
        evaluation(weights.untrained()).tried()
        weights = _learned(weights, store, quiet)
    kept = _found(evaluation(weights), store)
    with progress_bar(quiet or kept is not None) as watcher:
        found = kept or evaluation(weights).run(watcher)
    file = stores.evaluation_file(store, found) if kept else stores.keep_evaluation(store, found)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_evaluation(found)
        print(f"{'reused from' if kept else 'kept in'} {file}; `lifelong report` includes it")


def _learned(start: Pretraining, store: Path, quiet: bool) -> Weights:
    from lifelong.starts.recipe import Diverged

    try:
        with progress_bar(quiet) as watcher:
            return start.run(store, watcher)
    except Diverged as error:
        say(str(error))
        raise typer.Exit(2) from None


def _found(evaluation: Evaluation, store: Path) -> dict[str, Any] | None:
    """The record of an evaluation that is in the store already; a damaged one ends the command."""
    from lifelong.store.files import StoreError

    try:
        return evaluation.found(store)
    except StoreError as error:
        say(str(error))
        raise typer.Exit(3) from None


def _print_evaluation(found: dict[str, Any]) -> None:
    def percent(name: str, part: dict[str, Any]) -> None:
        print(f"  {name:<33}{100 * part['accuracy']:6.2f} ± {100 * part['half_width']:.2f}")

    print(f"{found['start']} on {found['source']}, {found['way']}-way {found['shots']}-shot, {found['queries']} "
          f"queries per class, classified by {found['answer']}\n"
          f"accuracy in percent ± half width of the 95 % t interval over {found['episodes']} episodes")
    percent("each query by itself", found)
    if found["transductive"]:
        percent("transductive batch normalisation", found["transductive"])
    if found["overlap"] == "unknown":
        print("It is not recorded which classes the start was learned on, so these classes may be among them.")
    elif found["overlap"]:
        print(f"The start was learned on {found['overlap']} of these classes, so this is not a few-shot result.")
