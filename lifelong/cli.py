"""The command line: list, run, tune, pretrain, fewshot, report, check; nothing heavy is imported unneeded."""

from __future__ import annotations

import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lifelong.report.document import Table as Written
    from lifelong.store.records import Run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Continual learning: run benchmarks, compare forgetting curves, plug in new strategies.")

DEFAULTS = ["finetune", "er", "ewc", "er + ewc", "joint"]

StoreFolder = Annotated[Path, typer.Option(help="Folder in which runs are kept, found and resumed.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StreamName = Annotated[str, typer.Argument(help="For example rotated-digits, or \"split-mnist(tasks=5)\".")]
Data = Annotated[str | None, typer.Option(help="Folder of the raw data; else $LIFELONG_DATA, else the user's "
                                               "cache.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over each task's data.")]
Steps = Annotated[int | None, typer.Option(help="Steps a task, in place of --epochs.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples a step.")]
Optimizer = Annotated[str | None, typer.Option(help="For example \"adam(lr=1e-3)\".")]
Model = Annotated[str | None, typer.Option(help="For example \"mlp(hidden=(256,256))\" or ./net.py:my_net.")]
Scenario = Annotated[str | None, typer.Option(help="task, domain or class incremental.")]
Tasks = Annotated[int | None, typer.Option(help="How many tasks.")]
ClassesPerTask = Annotated[int | None, typer.Option(help="Classes of each task.")]
Boundaries = Annotated[bool | None, typer.Option("--boundaries/--no-boundaries",
                                                 help="Whether learners are told where a task ends.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 (the network alone) or float64.")]
SaveEvery = Annotated[float, typer.Option(help="Seconds between checkpoints.")]
Memory = Annotated[float | None, typer.Option(
    help="GiB that training may take; lanes beyond are trained in turn; else what is free.")]
Augment = Annotated[str | None, typer.Option(
    help="How images are changed at random where they are learned, for example \"crop(padding=4) + flip\", or none; "
         "else as the stream has it.")]
Evaluate = Annotated[str | None, typer.Option(
    help="Which tasks are evaluated after every task: all, seen or current; all:10 only after every tenth task and the "
         "last; a sum such as current+all:100; else as the stream has it.")]
Overlap = Annotated[bool, typer.Option("--overlap", help="Use a start though it was learned on classes that are "
                                                         "tested on; the run's record says so.")]


def _hush(quiet: bool) -> bool:
    """The value of --quiet, which also says whether decoding draws a bar."""
    from lifelong import progress

    progress.shown = not quiet
    return quiet


def main() -> None:
    """Runs the command line; whatever a user can get wrong ends in one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        sys.exit(130)
    except (LookupError, ValueError, TypeError, ImportError, OSError) as error:
        _say(_sentence(error))
        sys.exit(2)
    except Exception as error:
        if hasattr(error, "format_message"):  # what was typed is no command or option: click's own sentence
            text = error.format_message()
            if "Usage:" in text:
                print(text)
            elif text.strip():  # nothing is typed at all: the help was shown
                _say(" ".join(text.split()) + _typed(error))
        elif any(kind.__name__ == "StoreError" for kind in type(error).__mro__):
            _say(str(error))
        else:
            raise
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "a name was not found"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def _typed(error: Exception) -> str:
    """What was typed for the option that an error is about, where it is about one's value."""
    names = getattr(getattr(error, "param", None), "opts", ())
    words = [piece for word in sys.argv[1:] for piece in word.split("=", 1)]
    typed = [value for name, value in itertools.pairwise(words) if name in names]
    return f", got {typed[-1]!r}" if typed and not type(error).__name__.startswith("Missing") else ""


def _say(text: str) -> None:
    print(f"lifelong: {text}", file=sys.stderr)


@app.command("list")
def list_(name: Annotated[str | None, typer.Argument(help="A stream, strategy, start, source, model, optimizer, "
                                                         "augmentation, ./mine.py:NAME, or a start's file.")] = None,
          as_json: Json = False) -> None:
    """What there is: streams, strategies, starts, sources, models, optimizers, augmentations; with a NAME, all of it.

    NAME may also be the file of a start: what it was learned from, how, and by which version.
    """
    from lifelong.spec import catalogue

    if name is not None and name.endswith(".safetensors"):
        _print_start(Path(name), as_json)
        return
    entries = [_entry(kind, key) for kind in catalogue.KINDS for key in catalogue.catalogue(kind)]
    if name is not None and "." in name and ".py:" not in name:
        catalogue.lookup("strategies", name)
        entries = [_entry("strategies", name)]
    elif name is not None and ".py:" in name:
        catalogue.load_file(*name.rsplit(":", 1))  # what is wrong with it is said
        entries = [_entry("plug-ins", name)]
    elif name is not None:
        found = [e for e in entries if e["name"] == name]
        if not found:
            import difflib
            near = difflib.get_close_matches(name, [e["name"] for e in entries], 3, 0.5)
            raise LookupError(f"there is nothing called {name!r}" + (f"; did you mean {' or '.join(near)}?" if near
                                                                     else "; `lifelong list` shows what there is"))
        entries = found
    if as_json:
        print(json.dumps(entries, indent=2, default=str))
    elif name is not None:
        for entry in entries:
            _describe(entry)
    else:
        _print_catalogue(entries)


def _print_start(file: Path, as_json: bool) -> None:
    from lifelong.starts.weights import load

    about = dict(load(file).about)
    if as_json:
        print(json.dumps(about, indent=2))
        return
    content = about.pop("content")
    about |= {"content": f"{len(content)} names, {content[0]} to {content[-1]}" if content else
              "no names, so it cannot be told which streams test on what it was learned on"}
    about["course"] = _course(about)
    del about["loss"]
    about.pop("logs", None)
    for key, value in about.items():
        print(f"{key:16}{json.dumps(value) if isinstance(value, dict | list) else value}")


def _course(about: Mapping[str, Any]) -> str:
    """What the first and the last steps of a start's learning told."""
    logs = {"loss": about["loss"], **about.get("logs", {})}
    first, last = ({name: "nan" if log[i] is None else f"{log[i]:.3g}" for name, log in logs.items()} for i in (0, -1))
    return ", ".join(f"{name} {first[name]} at first and {last[name]} at last" for name in logs)


def _entry(kind: str, name: str) -> dict[str, Any]:
    """All that is known of one entry of the catalogue; one that does not import says so and harms no other."""
    import inspect

    from lifelong.spec import catalogue

    try:
        factory = catalogue.load_file(*name.rsplit(":", 1)) if kind == "plug-ins" else catalogue.lookup(kind, name)
        text = inspect.getdoc(factory) or ""
        hyper = {k: {"default": p.default, "type": catalogue.type_name(p)}
                 for k, p in catalogue.hyper_parameters(factory).items()}
    except Exception as error:
        return {"kind": kind, "name": name, "about": f"cannot be loaded: {error}", "hyper_parameters": {}, "text": ""}
    return {"kind": kind, "name": name, "about": text.split("\n\n")[0].replace("\n", " "), "hyper_parameters": hyper,
            "text": text}


def _describe(entry: dict[str, Any]) -> None:
    values = ", ".join(f"{k}={v['default']!r}" for k, v in entry["hyper_parameters"].items())
    print(f"{entry['name']}({values})    one of the {entry['kind']}\n\n{entry['text']}\n")


def _print_catalogue(entries: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for kind in dict.fromkeys(e["kind"] for e in entries):
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        for entry in entries:
            if entry["kind"] == kind:
                table.add_row(Text(entry["name"]), Text(entry["about"]))
        console.print(table)
        console.print()
    console.print(Text("lifelong list NAME shows hyper-parameters, defaults and source; further strategies come from "
                       "files: ./mine.py:my_strategy, and from Avalanche: avalanche.GEM"))


@app.command()
def run(
    stream: StreamName,
    strategies: Annotated[list[str] | None, typer.Argument(
        help="For example er \"er(capacity=500) + ewc(strength=[1,10])\" ./mine.py:my_strategy. Default: "
             + ", ".join(DEFAULTS))] = None,
    store: StoreFolder = Path("runs"),
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="Seeds, trained all at once.")] = 5,
    device: Device = "auto",
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    optimizer: Optimizer = None,
    model: Model = None,
    scenario: Scenario = None,
    tasks: Tasks = None,
    classes_per_task: ClassesPerTask = None,
    boundaries: Boundaries = None,
    tuned: Annotated[Path | None, typer.Option(help="A file of `lifelong tune`: the strategies, with the values and "
                                                    "optimizers, that it chose.")] = None,
    log: Annotated[list[str] | None, typer.Option(help="Also write every run to csv, tensorboard or wandb (offline, "
                                                       "unless $WANDB_MODE says otherwise); may be repeated.")] = None,
    eval_every: Annotated[int, typer.Option(help="Also measure every so many steps inside a task; 0: never.")] = 0,
    dtype: Dtype = "float32",
    save_every: SaveEvery = 30.0,
    memory: Memory = None,
    overlap: Overlap = False,
    augment: Augment = None,
    evaluate: Evaluate = None,
    quiet: Annotated[bool, typer.Option("--quiet", callback=_hush,
                                        help="No progress, no table, no page in latest.")] = False,
) -> None:
    """Runs a benchmark: strategies on a stream. What the store has already is found, what was interrupted goes on."""
    from lifelong.experiments.prepare import prepare
    from lifelong.spec.run import Options
    from lifelong.store.loggers import Sinks

    extra = _given(scenario=scenario, tasks=tasks, classes_per_task=classes_per_task, boundaries=boundaries)
    options = Options(seeds, epochs, steps, batch_size, optimizer, model, eval_every, device, dtype, data, save_every,
                      memory, overlap, augment, evaluate)
    if tuned is not None:
        from lifelong.experiments.tuning import chosen

        experiment = chosen(tuned, stream, strategies or [], options, extra)
    else:
        experiment = prepare(stream, strategies or DEFAULTS, options, extra)
    sinks = Sinks(log or [], store / "log")
    try:
        with sinks, _watcher(quiet, sinks.made) as watcher:
            outcome = experiment.run(store, watcher)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
    if outcome.found and not quiet:
        print(f"{outcome.found} of {len(experiment.settings)} found in {store}")
    if outcome.runs and not quiet:
        _show(outcome.runs, store / "latest")
    if log and not quiet:
        print(f"log: {', '.join(str(store / 'log' / kind) for kind in sinks.kinds)}")
    for sentence in (*outcome.failures, *sinks.warnings):
        _say(sentence)
    diverged = any(r.about["status"] == "diverged" for r in outcome.runs)
    raise typer.Exit(3 if outcome.damaged else 1 if outcome.failures or diverged else 0)


def _given(**extra: Any) -> dict[str, Any]:
    """The options of a stream that were typed."""
    return {k: v for k, v in extra.items() if v is not None}


@app.command()
def tune(
    stream: StreamName,
    strategies: Annotated[list[str], typer.Argument(
        help="Each with lists of values to choose from, for example \"ewc(strength=[1,10,100])\".")],
    store: StoreFolder = Path("runs"),
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="Tuning streams, which are those of other seeds than a run's.")] = 5,
    first_tasks: Annotated[int | None, typer.Option(help="Learn only so many tasks, the first ones.")] = None,
    on: Annotated[str | None, typer.Option(help="Another stream to choose on, of other classes: for example "
                                                "\"split-omniglot(part='background')\".")] = None,
    device: Device = "auto",
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    optimizer: Annotated[str | None, typer.Option(help="For example \"sgd(lr=[0.01,0.03,0.1])\".")] = None,
    model: Model = None,
    scenario: Scenario = None,
    tasks: Tasks = None,
    classes_per_task: ClassesPerTask = None,
    boundaries: Boundaries = None,
    dtype: Dtype = "float32",
    save_every: SaveEvery = 30.0,
    memory: Memory = None,
    overlap: Overlap = False,
    augment: Augment = None,
    quiet: Annotated[bool, typer.Option("--quiet", callback=_hush,
                                        help="No progress, no table; prints the file alone.")] = False,
) -> None:
    """Chooses hyper-parameters on streams of other seeds by training examples held out, or on other classes; never on
    what is tested."""
    from lifelong.experiments import tuning
    from lifelong.spec.run import Options

    extra = _given(scenario=scenario, tasks=tasks, classes_per_task=classes_per_task, boundaries=boundaries)
    options = Options(seeds, epochs, steps, batch_size, optimizer, model, 0, device, dtype, data, save_every, memory,
                      overlap, augment)
    try:
        with _watcher(quiet) as watcher:
            found = tuning.tune(stream, strategies, options, extra, root=store, first_tasks=first_tasks,
                                on=on, watcher=watcher)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
    if not quiet:
        for choice in found.choices:
            _print_choice(choice, "held-out training examples" if on is None else f"examples of {on}")
    for failure in found.failures:
        _say(failure)
    if found.file and quiet:
        print(found.file)
    elif found.file:
        import shlex

        shared = {"epochs": epochs, "steps": steps, "batch-size": batch_size, "scenario": scenario, "tasks": tasks,
                  "classes-per-task": classes_per_task, "dtype": None if dtype == "float32" else dtype,
                  "augment": augment, "store": None if store == Path("runs") else store, "data": data}
        words = ["lifelong", "run", stream, "--tuned", str(found.file)]
        words += [str(word) for key, value in shared.items() if value is not None for word in (f"--{key}", value)]
        words += [] if boundaries is None else ["--boundaries" if boundaries else "--no-boundaries"]
        words += ["--overlap"] if overlap else []
        print(shlex.join(words))
    raise typer.Exit(1 if found.failures else 0)


def _print_choice(choice: Any, where: str) -> None:
    """A table of the settings of one strategy, best first, and what these seeds can tell."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from lifelong.experiments import tuning

    table = Table(title=Text(choice.asked, overflow="fold"), title_justify="left", box=SIMPLE)
    for name in [*choice.best.values, "accuracy", "behind", ""]:
        table.add_column(Text(name), justify="right" if name else "left")
    for tried in choice.tried:
        (mean, half), behind = tried.score, choice.behind(tried) if tried is not choice.best else None
        note = "chosen" if tried is choice.best else "not told apart" if tried in choice.alike else ""
        table.add_row(*map(tuning.shown, tried.values.values()),
                      "diverged" if mean != mean else f"{100 * mean:.1f} ± {100 * half:.1f}".removesuffix(" ± nan"),
                      "" if behind is None else f"{100 * behind.mean:.1f} ± {100 * behind.half_width:.1f}", note)
    console = Console()
    console.print(table)
    for sentence in (choice.verdict, *choice.edges):
        console.print(Text(sentence))
    n = len(choice.best.accuracy)
    over = f"mean ± half width of the 95 % t interval over {n} seeds" if n > 1 else "one seed, which gives no interval"
    console.print(Text(f"percent on {where}, {over}; {len(choice.tried)} settings took {choice.seconds:g} s\n"))


def _watcher(quiet: bool, made: Callable[[Run], None] = lambda run: None) -> Any:
    """A context manager that gives a watcher: a bar with the time left, or nothing; `made` is told of runs.

    What follows is training, so freed memory is kept from here on.
    """
    import contextlib

    from rich import progress

    from lifelong.learning.room import keep_pages
    from lifelong.progress import Watcher

    keep_pages()

    class Quiet(Watcher):
        """Passes runs on."""

        def made(self, run: Run) -> None:
            made(run)

    if quiet:
        return contextlib.nullcontext(Quiet())
    bar = progress.Progress(
        progress.TextColumn("{task.description}", markup=False), progress.BarColumn(), progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(), progress.TextColumn("left"), progress.TimeRemainingColumn())

    class Bar(Quiet):
        """Draws progress on the terminal."""

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            bar.stop()

        def begin(self, title: str) -> None:
            bar.start()
            self.task, self.drawn = bar.add_task(title if len(title) < 40 else title[:37] + "...", total=1.0), 0.0

        def advance(self, share: float) -> None:
            if share - self.drawn > 0.002 or share >= 1:  # every step comes by; drawing costs more than most steps
                bar.update(self.task, completed=share)
                self.drawn = share

        def say(self, sentence: str) -> None:
            bar.console.print(sentence, markup=False)

    return Bar()


def _show(runs: list[Run], folder: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from lifelong import report

    paths = report.write(runs, folder, only=("curves", "tasks"))
    console = Console()
    for group in report.groups(runs):
        _print_tables(report.tables_of(group), group.title)
    console.print(Text("percent, mean ± half width of the 95 % t interval over seeds; every metric, its definition and "
                       "the tests between strategies are in report.md and report.html; `lifelong report` draws all "
                       "figures"))
    for run in runs:
        if run.about["note"]:
            console.print(Text(f"{run.spec['strategy']}: {run.about['note']}"))
    figures = [p for p in paths if p.suffix == ".png"]
    for title, some in (("table", paths[:3]), ("figures", figures)):
        if some:
            print(f"{title}: {', '.join(map(str, some))}")


def _print_tables(tables: Sequence[Written], heading: str) -> None:
    """Tables as wide as the terminal: of metrics, by length, as others compute them, of few-shot evaluations."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for found in tables:
        # Of the metrics those in _SPARE go first; of other tables the last columns, of lengths all but the longest.
        titles = [c.title for c in found.columns]
        spare = (_SPARE if found.name.endswith("-metrics") else ("seed", "episodes")
                 if found.name.startswith("few-shot-") else tuple(reversed(titles[3:-1]))
                 if found.name.endswith("-lengths") else tuple(reversed(titles[2:])))
        header, rows = _fitting(titles,
                                [["".join(one.text) + " ≈" * (one.mark == "tied") for one in row]
                                 for row in found.rows],
                                console.width, spare)
        title = "\n".join(["".join(found.caption), heading]).strip()
        table = Table(title=Text(title, overflow="fold"), title_justify="left", box=SIMPLE)
        for i, name in enumerate(header):
            table.add_column(Text(name.replace(" ", "\n", 1)), justify="left" if i == 0 else "right",
                             no_wrap=i > 0, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)


# What a narrow terminal does without, in this order.
_SPARE = ("learning accuracy", "forward transfer", "intransigence", "average incremental accuracy", "backward transfer",
          "seeds")


def _fitting(header: list[str], rows: list[list[str]], width: int,
             spares: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """The table without those of the columns `spares`, the first ones first, for which `width` has no room."""
    for spare in ("no column", *spares):
        keep = [i for i, title in enumerate(header) if title != spare]
        header, rows = [header[i] for i in keep], [[row[i] for i in keep] for row in rows]
        if not rows:
            break
        needed = [max(map(len, [*(row[i] for row in rows), *title.split(" ", 1)])) for i, title in enumerate(header)]
        if min(needed[0], 30) + sum(needed[1:]) + 3 * len(header) <= width:
            break
    return header, rows


@app.command()
def pretrain(
    source: Annotated[str, typer.Argument(help="What it is learned from: for example glyphs, or "
                                                 "\"omniglot(size=84)\".")],
    start: Annotated[str, typer.Argument(help="For example oml, or \"protonet(steps=5000)\".")],
    out: Annotated[Path | None, typer.Option(help="File to write it to; else only the store.")] = None,
    store: StoreFolder = Path("runs"),
    data: Annotated[str | None, typer.Option(help="Folder of the raw data; else $LIFELONG_DATA, else the user's "
                                                  "cache.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16 (products and convolutions alone) or float64.")]
        = "float32",
    save_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 30.0,
    quiet: Annotated[bool, typer.Option("--quiet", callback=_hush, help="No progress.")] = False,
) -> None:
    """Learns a start, once for many runs. What the store has already is found, what was interrupted goes on."""
    from lifelong.experiments import prepare as request
    from lifelong.starts import pretrain as pretraining
    from lifelong.starts.recipe import Diverged
    from lifelong.starts.weights import save

    parsed = pretraining.parse(start)
    todo = pretraining.Pretraining(parsed, pretraining.make_source(source, data), seed=seed,
                                   device=request.device(device), precision=precision)
    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} to")
    if out is not None and (out.suffix != ".safetensors" or out.is_dir()):
        raise ValueError(f"--out is the file of a start, such as {out.with_suffix('')}.safetensors; got "
                         f"{'the folder ' if out.is_dir() else ''}{out}")
    try:
        with _watcher(quiet) as watcher:
            weights = todo.found(store) or todo.run(store, watcher, save_every)
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
    except Diverged as error:
        _say(str(error))
        raise typer.Exit(2) from None
    if out is not None:
        save(out, weights)
    place = out if out is not None else todo.path(store)
    if not quiet:
        about = weights.about
        print(f"{about['strategy']}: {about['steps']} steps on {about['source']} in {about['seconds']:.0f} s, "
              f"{_course(about)}\n{place}\n"
              f"lifelong run STREAM \"{str(parsed).partition('(')[0]}(file='{place}') + er\"")


@app.command()
def fewshot(
    source: Annotated[str, typer.Argument(help="Where the classes come from: for example "
                                                 "\"omniglot(part='evaluation')\".")],
    start: Annotated[str, typer.Argument(help="A file of `lifelong pretrain`, or for example \"protonet(file='FILE')\" "
                                              "or \"maml(source='omniglot')\".")],
    way: Annotated[int, typer.Option(help="Classes of an episode.")] = 5,
    shots: Annotated[int, typer.Option(help="Examples of each class that are shown.")] = 1,
    queries: Annotated[int, typer.Option(help="Further examples of each class that are asked about.")] = 15,
    episodes: Annotated[int, typer.Option(help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the episodes.")] = 0,
    store: StoreFolder = Path("runs"),
    data: Annotated[str | None, typer.Option(help="Folder of the raw data; else $LIFELONG_DATA, else the user's "
                                                  "cache.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    overlap: Annotated[bool, typer.Option("--overlap", help="Though the start was learned on these classes.")] = False,
    transductive: Annotated[bool, typer.Option(help="Also answer all queries of an episode together, where the network "
                                                    "has batch normalisation; the slower part.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", callback=_hush, help="No progress.")] = False,
    as_json: Json = False,
) -> None:
    """Few-shot evaluation: how well a start tells new classes apart after a few examples of each."""
    from lifelong import store as stores
    from lifelong.experiments import prepare as request
    from lifelong.starts.fewshot import Evaluation, find
    from lifelong.starts.pretrain import Pretraining, make_source
    from lifelong.starts.recipe import Diverged

    where = request.device(device)
    asked = partial(Evaluation, make_source(source, data), way=way, shots=shots, queries=queries, episodes=episodes,
                    seed=seed, device=where, overlap=overlap, together=transductive)
    weights = find(start, where, data, store)
    if isinstance(weights, Pretraining):
        asked(weights.untrained()).tried()
        try:
            with _watcher(quiet or as_json) as watcher:
                weights = weights.run(store, watcher)
        except Diverged as error:
            _say(str(error))
            raise typer.Exit(2) from None
    todo = asked(weights)
    try:
        kept = todo.found(store)
    except stores.StoreError as error:
        _say(str(error))
        raise typer.Exit(3) from None
    with _watcher(quiet or as_json or kept is not None) as watcher:
        found = kept or todo.run(watcher)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        _print_evaluation(found)
    file = stores.evaluation_file(store, found) if kept else stores.keep_evaluation(store, found)
    if not as_json:
        print(f"{'found in' if kept else 'kept in'} {file}; `lifelong report` shows it")


def _print_evaluation(found: dict[str, Any]) -> None:
    def percent(name: str, part: dict[str, Any]) -> None:
        print(f"  {name:<33}{100 * part['accuracy']:6.2f} ± {100 * part['half_width']:.2f}")

    print(f"{found['start']} on {found['source']}, {found['way']}-way {found['shots']}-shot, {found['queries']} "
          f"queries of each class, by {found['answer']}\npercent right ± half width of the 95 % t interval over "
          f"{found['episodes']} episodes")
    percent("each query by itself", found)
    if found["transductive"]:
        percent("transductive batch normalisation", found["transductive"])
    if found["overlap"] == "unknown":
        print("what it was learned on has no names, so it may have been these classes")
    elif found["overlap"]:
        print(f"it was learned on {found['overlap']} of these classes: this is no few-shot result")


@app.command()
def report(
    runs: Annotated[list[Path] | None, typer.Argument(
        help="Stores, or folders of single runs; else what --store says.")] = None,
    store: StoreFolder = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder for the report; else report, inside the store.")] = None,
    stream: Annotated[list[str] | None, typer.Option(help="Only this stream, or those that fit a pattern such as "
                                                          "'split-*'; may be repeated.")] = None,
    strategy: Annotated[list[str] | None, typer.Option(help="Only this strategy, or those that fit a pattern such as "
                                                            "'er*'; may be repeated.")] = None,
    since: Annotated[str | None, typer.Option(help="Only what was finished then or later, such as 2026-11-20.")] = None,
    reference: Annotated[str | None, typer.Option(
        help="What the others are compared with: a strategy of the table, else its first; or parts: every sum with "
             "each of its parts.")] = None,
    as_: Annotated[list[str] | None, typer.Option("--as", help="Also the metrics as gem, avalanche, mammoth or "
                                                               "continuum computes them; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Page, tables, figures and tests between strategies of what was run, from the saved runs alone."""
    from lifelong import report as reports

    others = tuple(dict.fromkeys(as_ or ()))
    for name in others:
        reports.framework(name)
    places = runs or [store]
    found = reports.select([place for place in places if runs or place.is_dir()], stream or (), strategy or (), since)
    for problem in found.damaged:
        _say(problem)
    if not found.runs and not found.evaluations:
        for words in found.unfinished:
            _say("".join(words))
        raise LookupError(_nothing(places, stream, strategy, since))
    groups = reports.groups(found.runs)
    reports.checked_reference(groups, reference)
    if as_json:
        rows = [*reports.rows(found.runs), *reports.fewshot_rows(found.evaluations)]
        print(json.dumps(rows, indent=2, allow_nan=False))
    else:
        folder = out or (Path("report") if (places[0] / "run.json").exists() else places[0] / "report")
        paths = reports.write(found.runs, folder, reference=reference, other=others, damaged=found.damaged,
                              unfinished=found.unfinished, left_out=found.left_out, evaluations=found.evaluations)
        for group in groups:
            _print_tables(reports.tables_of(group, others), group.title)
            print("".join(reports.leader(group)))
        _print_tables(reports.result_tables(found.evaluations), "Few-shot, percent")
        for words in found.unfinished:
            print(f"not finished: {''.join(words)}")
        below = [str(path.parent) for path in paths if path.parent != folder]
        print(f"page: {paths[0]}\ntext: {paths[1]}\n{len(below)} tables and figures: "
              f"{', '.join(dict.fromkeys(below))}")
    raise typer.Exit(3 if found.damaged else 0)


def _nothing(places: list[Path], stream: list[str] | None, strategy: list[str] | None, since: str | None) -> str:
    """Why there is nothing to report on."""
    asked = [f"of {', '.join(stream)}" if stream else "", f"by {', '.join(strategy)}" if strategy else "",
             f"since {since}" if since else ""]
    what = " ".join(["no finished run or few-shot evaluation", *(word for word in asked if word)])
    return (f"there is {what} in {', '.join(map(str, places))}: make one, for example with `lifelong run "
            "rotated-digits`")


@app.command()
def check(strategy: Annotated[str, typer.Argument(help="For example ./mine.py:my_strategy, or \"er + ewc\".")]) -> None:
    """Tests a strategy against the contract: purity, one equals many, resume, bounded memory."""
    from lifelong.experiments.contract import run_checks

    wrong: list[str] = []
    for name, problem in run_checks(strategy):
        said = "" if problem is None else f": {problem}"
        if problem is not None:
            same = re.sub(r"\d+", "", problem)  # sizes differ from check to check
            said = ": as above" if same in wrong else said
            wrong.append(same)
        print(f"{'wrong' if problem else 'ok':6s}{name.replace('_', ' ')}{said}")
    if wrong:
        raise typer.Exit(1)
    print(f"{strategy} keeps the contract")


if __name__ == "__main__":
    main()
