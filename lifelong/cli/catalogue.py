"""`lifelong list`: everything that has a name, or all about one name."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lifelong.cli.options import Json
from lifelong.cli.starts import progress_of

# Kinds of the catalogue: the noun for one entry, and a command that uses it.
USES = {
    "streams": ("stream", "lifelong run \"{call}\" er"),
    "strategies": ("strategy", "lifelong run split-digits \"{call}\""),
    "starts": ("start", "lifelong run split-glyphs \"{name} + er\""),
    "sources": ("source", "lifelong pretrain \"{call}\" supervised"),
    "models": ("model", "lifelong run split-digits er --model \"{call}\""),
    "optimizers": ("optimizer", "lifelong run split-digits er --optimizer \"{call}\""),
    "augmentations": ("augmentation", "lifelong run split-mnist er --augment \"{call}\""),
    "plug-ins": ("from a file", ""),
}


def list_(
    name: Annotated[str | None, typer.Argument(
        help="Name to describe: of anything in the list, of a function in a file (./mine.py:my_strategy), of a "
             "strategy of Avalanche (avalanche.GEM), or of a file of `lifelong pretrain`.")] = None,
    as_json: Json = False,
) -> None:
    """List all streams, strategies, starts, sources, models, optimizers and augmentations, or describe one of them.

    The description of a NAME has its hyper-parameters, their defaults and the
    publication that it follows.
    """
    if name is not None and name.endswith(".safetensors"):
        _print_start(Path(name), as_json)
        return
    entries = _entries(name)
    if as_json:
        print(json.dumps(entries, indent=2, default=str))
    elif name is None:
        _print_catalogue(entries)
    else:
        for entry in entries:
            _describe(entry)


def _entries(name: str | None) -> list[dict[str, Any]]:
    """All entries of the catalogue, or those called `name`.

    Raises:
        LookupError: where there is none, with the names that are spelled like it.
    """
    from lifelong.spec import catalogue, plugins

    if name is not None and ".py:" in name:
        plugins.load_file(*name.rsplit(":", 1))  # raises for a file that does not import
        return [_entry("plug-ins", name)]
    if name is not None and "." in name:
        catalogue.lookup("strategies", name)
        return [_entry("strategies", name)]
    entries = [_entry(kind, key) for kind in catalogue.KINDS for key in catalogue.catalogue(kind)]
    found = [entry for entry in entries if name in (None, entry["name"])]
    if not found:
        near = catalogue.nearest(str(name), dict.fromkeys(entry["name"] for entry in entries))
        raise LookupError(f"there is nothing called {name!r}; " + (f"did you mean {near}?" if near else
                                                                   "`lifelong list` lists all names"))
    return found


def _entry(kind: str, name: str) -> dict[str, Any]:
    """What is known of one entry of the catalogue; the reason, where it cannot be imported."""
    from lifelong.spec import catalogue, plugins

    try:
        factory = plugins.load_file(*name.rsplit(":", 1)) if kind == "plug-ins" else catalogue.lookup(kind, name)
        text = (inspect.getdoc(factory) or "") + (_every_start() if getattr(factory, "pretrained", False) else "")
        hyper = {k: {"default": p.default, "type": catalogue.type_name(p)}
                 for k, p in catalogue.hyper_parameters(factory).items()}
    except Exception as error:
        return {"kind": kind, "name": name, "about": f"cannot be loaded: {error}", "hyper_parameters": {}, "text": ""}
    return {"kind": kind, "name": name, "about": text.split("\n\n")[0].replace("\n", " "), "hyper_parameters": hyper,
            "text": text}


def _every_start() -> str:
    """The description of the hyper-parameters that all starts which are learned have in common."""
    from lifelong.starts.recipe import pretrained

    text = (inspect.getdoc(pretrained) or "").partition("\nArgs:")[0]
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return "\n".join(["\n\nEvery start that is learned also has:", *lines])


def _describe(entry: dict[str, Any]) -> None:
    """Prints an entry: the call with its default values, the docstring, and an example."""
    from lifelong.spec import catalogue

    name, hyper = entry["name"], entry["hyper_parameters"]
    noun, example = USES[entry["kind"]]
    values = ", ".join(f"{k}={v['default']!r}" for k, v in hyper.items())
    print(f"{name} ({noun})\n")
    print(textwrap.fill(f"{name}({values})", 100, subsequent_indent=" " * (len(name) + 1), break_long_words=False))
    print(f"\n{entry['text'] or entry['about']}\n")
    given = [key for key in catalogue.CONTEXT if re.search(rf"^ +{key}: ", entry["text"], re.MULTILINE)]
    if given:
        print(f"Not hyper-parameters, but filled in by lifelong: {', '.join(given)}.\n")
    if example and "." not in name:
        first = next((f"({k}={v['default']!r})" for k, v in hyper.items() if v["default"] is not None), "")
        print(f"Example: {example.format(name=name, call=name + first)}\n")


def _print_catalogue(entries: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for kind in dict.fromkeys(entry["kind"] for entry in entries):
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        for entry in entries:
            if entry["kind"] == kind:
                table.add_row(Text(entry["name"]), Text(entry["about"]))
        console.print(table)
        console.print()
    console.print(Text("`lifelong list NAME` shows the hyper-parameters, defaults and source of one entry. Strategies "
                       "can also come from a file (./mine.py:my_strategy) or from Avalanche (avalanche.GEM)."))


def _print_start(file: Path, as_json: bool) -> None:
    """Prints the record in a file of `lifelong pretrain`."""
    from lifelong.starts.weights import load

    about = dict(load(file).about)
    if as_json:
        print(json.dumps(about, indent=2))
        return
    content = about.pop("content")
    about |= {"content": f"{len(content)} names, {content[0]} to {content[-1]}" if content else
              "no names of classes, so lifelong cannot tell which streams test on classes that it was learned on"}
    about["progress"] = progress_of(about)
    del about["loss"]
    about.pop("logs", None)
    for key, value in about.items():
        print(f"{key:16}{json.dumps(value) if isinstance(value, dict | list) else value}")
