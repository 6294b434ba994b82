"""Experiments from specs: specs that a user wrote into a file, and specs of records, whose runs are repeated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from lifelong.experiments.complete import RECORDED, SHARED, completed
from lifelong.experiments.experiment import Experiment
from lifelong.experiments.prepare import asked_for, named_stream
from lifelong.spec import plugins
from lifelong.spec.run import OptionError, Options, Spec


def read(path: Path) -> list[Spec]:
    """The specs in a file: the spec in a run's record, one written by a user, or a list of specs.

    Args:
        path: a JSON file, or the folder of a run.

    Raises:
        ValueError: the file holds no valid specs; the message gives the reason.
        OSError: the file cannot be read.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        found = json.loads(file.read_bytes(), parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if isinstance(found, dict) and "spec" in found:
        found = found["spec"]
    every = found if isinstance(found, list) else [found]
    if not every:
        raise ValueError(f"{file} holds no spec")
    try:
        return [Spec.from_json(one) for one in every]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def again(specs: Sequence[Spec], options: Options | None = None, *, trust: bool = False) -> list[Experiment]:
    """Experiments that make the runs of specs, one experiment for all specs that share a stream and its options.

    The run of a spec from a record is repeated exactly: code, stream, hyper-parameters and start must be unchanged.

    Args:
        specs: specs written by users, or complete specs of records.
        options: device, data, memory and other options that do not identify a run; the specs give all others.
        trust: whether Python files named by the specs may be run. Specs may come from other people, so by default no
            file is run.

    Raises:
        OptionError: an option is given that the specs give.
        PermissionError: a spec names a Python file, without `trust`.
        ValueError: a file or anything else in a record has changed; and as in `prepare`.
    """
    usual = Options()
    options = options or usual
    for name in (*SHARED, "model", "optimizer"):
        if getattr(options, name) != getattr(usual, name):
            raise OptionError(f"{name} is said by the specs: leave it out, or change it there", name)
    groups: dict[tuple[Any, ...], list[Spec]] = {}
    for spec in specs:
        groups.setdefault((spec.stream, *(getattr(spec, name) for name in SHARED)), []).append(spec)
    with nullcontext() if trust else plugins.trusting(()):
        for spec in specs:
            _check_code(spec)
        return [_experiment(group, options) for group in groups.values()]


def _check_code(spec: Spec) -> None:
    """Raises if the run of a spec cannot be repeated, because it was a tuning run or a file is missing or changed."""
    if "tuning" in (spec.stream_options or {}):
        raise ValueError(f"{spec.strategy} on {spec.stream_name} was run by `lifelong tune` on examples that it held "
                         "out: tune again, for a spec does not say how")
    for path, was in (spec.code or {}).items():
        if not path.endswith(".py"):
            continue  # the version of a package
        plugins.check_trusted(path)
        if not Path(path).is_file():
            raise LookupError(f"{spec.strategy} on {spec.stream} needs the file {path}, which is not here (its digest "
                              f"was {was}): paths are from the folder that the command is typed in")
        if (now := plugins.digests(path)[path]) != was:
            raise ValueError(f"{path} has changed since {spec.strategy} on {spec.stream} was run: its digest was {was} "
                             f"and is {now}")


def _experiment(group: Sequence[Spec], options: Options) -> Experiment:
    """The experiment of specs that share a stream and its options."""
    options = replace(options, **{name: getattr(group[0], name) for name in SHARED})
    text, stream = named_stream(group[0].stream, options)
    asked = []
    for spec in group:
        own = replace(options, optimizer=spec.optimizer, model=None if spec.start else spec.model)
        every = asked_for(text, stream, spec.strategy, own)
        if len(every) > 1:
            raise ValueError(f"a spec is one run, so {spec.strategy}, its model and its optimizer take single values: "
                             "write a spec for each")
        asked.append(replace(every[0], overlap=spec.overlap, **{name: getattr(spec, name) for name in RECORDED}))
    return completed(stream, asked, options)
