"""Groups of comparable runs, with a label and the metrics of every run."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.report.score import Score
from lifelong.store.records import Run
from lifelong.store.records import seeds as seeds

_PLACES = {"finetune": 0, "cumulative": 2, "joint": 3}  # the bounds are at the ends of a table; all others are 1
# What of a spec is said elsewhere than in a run's label: by the stream's title, the strategy's name, or `_LAST_RESORT`.
_ELSEWHERE = {"stream", "stream_name", "stream_options", "strategy", "seeds", "eval_every", "hyper", "start", "data",
              "code", "sources", "format"}
_START_FILE = re.compile(r"""(?<=(['"]))(?:(?!\1).)*\.safetensors(?=\1)""")
_LAST_RESORT = ("start", "seeds", "eval_every", "hyper", "code", "sources", "data", "format")


@dataclass(frozen=True)
class Group:
    """Runs on the same stream with the same options, in the order of the table.

    Attributes:
        stream: name of the stream, with its version.
        options: the options of the stream.
        runs: the runs: finetune first, cumulative and joint last, the others in the given order.
        labels: a unique label of each run: its strategy, and the settings in which it differs from others.
        common: the settings that all runs share unless their labels say otherwise.
        told_task: whether the scores are those of class-incremental runs that were given the task at test time.
        slug: beginning of the names of the group's files.
    """

    stream: str
    options: Mapping[str, Any]
    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    common: str
    told_task: bool
    slug: str

    @property
    def title(self) -> str:
        """The stream with its options, and whether the task was given at test time."""
        plain = {"boundaries": True, "examples": None, "test_examples": None}  # usual values are not shown
        options = ", ".join(_setting(name, value) for name, value in sorted(self.options.items())
                            if name not in plain or plain[name] != value)
        return (self.stream + (f" ({options})" if options else "")
                + (", task given at test time" if self.told_task else ""))

    @property
    def digest(self) -> str:
        """Six hexadecimal digits that identify the stream and its options."""
        return hashlib.sha256(_json([self.stream, self.options]).encode()).hexdigest()[:6]

    @property
    def unseen(self) -> bool:
        """Whether learners are tested on classes before they have seen them; forward transfer is then undefined."""
        both = any("accuracy_task" in run.logs for run in self.runs)  # only class-incremental runs are scored twice
        scenario = "class" if "lengths" in self.options else self.options.get("scenario")
        return not self.told_task and (both or scenario == "class")

    @property
    def reference(self) -> int | None:
        """The index of the reference of intransigence: cumulative, or else joint, or else None."""
        bounds = [_bound(run) for run in self.runs]
        return next((bounds.index(name) for name in ("cumulative", "joint") if name in bounds), None)

    @property
    def score(self) -> Score:
        """The score that the numbers are."""
        return Score.of(self.runs[0])

    @property
    def n_tasks(self) -> int:
        """Number of tasks, T."""
        return int(self.runs[0].accuracy.shape[-1])

    def bound(self, i: int) -> bool:
        """Whether run `i` is a bound: finetune, cumulative or joint."""
        return _bound(self.runs[i]) in _PLACES

    def find(self, name: str) -> int | None:
        """The index of the run with this label, or else of the first run with this strategy, or else None."""
        strategies = [str(run.spec["strategy"]) for run in self.runs]
        return next((names.index(name) for names in (self.labels, strategies) if name in names), None)

    def values(self, i: int) -> dict[str, Array]:
        """Every metric that applies to run `i`, one value per seed."""
        return self._values[i]

    @cached_property
    def _values(self) -> list[dict[str, Array]]:
        return [self._measured(i) for i in range(len(self.runs))]

    def _measured(self, i: int) -> dict[str, Array]:
        accuracy = self.runs[i].accuracy
        names = ["average_accuracy", "average_incremental_accuracy", "learning_accuracy"]
        if accuracy.shape[-1] > 1:
            names[2:2] = ["forgetting", "backward_transfer"] + ([] if self.unseen else ["forward_transfer"])
        found = {name: getattr(metrics, name)(accuracy) for name in names}
        reference = self.reference
        if reference is not None and reference != i:
            best = self.runs[reference]
            mine, theirs = seeds(self.runs[i]), seeds(best)
            if set(mine) <= set(theirs):
                rows = [theirs.index(seed) for seed in mine]
                found["intransigence"] = metrics.intransigence(accuracy, best.accuracy[rows])
        return found


class Summary(NamedTuple):
    """Mean and half width of the 95 % t interval over the `n` seeds that were measured."""

    mean: float
    half_width: float
    n: int


def summary(values: Array) -> Summary:
    """The summary of the finite values; seeds that diverged are not counted."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Summary(np.nan, np.nan, 0)
    mean, half_width = metrics.mean_interval(finite)
    return Summary(float(mean), float(half_width), len(finite))


def diverged(run: Run) -> bool:
    """Whether a seed of the run did not reach the end."""
    return bool(run.about.get("status", "done") != "done")


def sees_all(run: Run) -> bool:
    """Whether the run is an upper bound: cumulative or joint, which learn from the data of several tasks at once."""
    return _PLACES.get(_bound(run), 0) > 1


def alike(run: Run, other: Run, *also: str) -> bool:
    """Whether two runs differ only in the strategy, and in the settings named in `also`."""
    differ = {"strategy", "hyper", "start", "code", "sources", "seeds", "data", "stream", "stream_name", "format",
              *also}
    return all(_json(run.spec.get(name)) == _json(other.spec.get(name))
               for name in {*run.spec, *other.spec} - differ)


def percent(values: Array, score: Score = Score()) -> str:
    """Values [S] as `mean ± half width`, in percent if the score is, with decimals suited to the half width."""
    mean, half_width, n = summary(values)
    if not n:
        return "–"
    text = score.interval(mean, half_width)
    return text if n == len(values) else f"{text} ({n}/{len(values)})"


def by_length(run: Run) -> dict[str, Array]:
    """Accuracy over all classes seen so far at each of the stream's `lengths`, `test` and `train`, [S, T] each."""
    lengths = run.spec["stream_options"]["lengths"]
    kinds = {"test": run.accuracy}
    if "accuracy_train" in run.logs:
        kinds["train"] = run.logs["accuracy_train"]
    return {kind: metrics.average_curve(a, np.diff([0, *lengths])) for kind, a in kinds.items()}


def groups(runs: Sequence[Run]) -> list[Group]:
    """Groups of comparable runs, which have the same stream with the same options, in the given order.

    Class-incremental runs that were also measured with the task given at test time are in a second group as well.
    """
    with_task = [replace(run, accuracy=run.logs["accuracy_task"]) for run in runs if "accuracy_task" in run.logs]
    members: dict[tuple[bool, str], list[Run]] = {}
    for told_task, scored in ((False, runs), (True, with_task)):
        for run in scored:
            members.setdefault((told_task, _json([run.stream, run.spec.get("stream_options")])), []).append(run)
    streams = list(dict.fromkeys(key for _, key in members))
    files = _short_files(runs)
    ordered = sorted(members, key=lambda key: (streams.index(key[1]), key[0]))
    found = [_group(members[key], key[0], files) for key in ordered]
    twice = Counter(group.slug for group in found)
    return [replace(g, slug=f"{g.slug}-{g.digest}") if twice[g.slug] > 1 else g for g in found]


def _short_files(runs: Sequence[Run]) -> dict[str, str]:
    """For each file of a start in a strategy, the shortest end of its path that is unique, usually its name."""
    paths = {found[0] for run in runs for found in _START_FILE.finditer(str(run.spec["strategy"]))}
    ends = {path: ["/".join(path.split("/")[-n:]) for n in range(1, path.count("/") + 2)] for path in paths}
    common = Counter(end for several in ends.values() for end in several)
    return {path: next((end for end in several if common[end] == 1), path) for path, several in ends.items()}


def _group(runs: Sequence[Run], told_task: bool, files: Mapping[str, str]) -> Group:
    ordered = sorted(runs, key=lambda run: _PLACES.get(_bound(run), 1))
    labels, common = _labels(ordered, files)
    spec = ordered[0].spec
    options = spec.get("stream_options") or {}
    words = [ordered[0].stream, str(options.get("scenario", "")), "told" * told_task]
    slug = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")
    return Group(ordered[0].stream, options, tuple(ordered), labels, common, told_task, slug)


def _bound(run: Run) -> str:
    """The strategy without its hyper-parameters, which is a name if the strategy is not a sum."""
    return re.sub(r"\(.*\)$", "", str(run.spec["strategy"])).strip()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _setting(name: str, value: Any) -> str:
    if name in ("model", "optimizer"):
        return str(value)  # adam(lr=0.001) needs no name before it
    return f"{name}={_json(value) if isinstance(value, Mapping | list) else value}"


def _labels(runs: Sequence[Run], files: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """A unique label for each run, and the settings that all runs share unless their labels say otherwise."""
    fields = [name for name in dict.fromkeys(name for run in runs for name in run.spec) if name not in _ELSEWHERE]
    usual = {name: Counter(_json(run.spec.get(name)) for run in runs).most_common(1)[0][0] for name in fields}
    labels = []
    for run in runs:
        twins = [other for other in runs if other.spec["strategy"] == run.spec["strategy"]]
        parts = [_START_FILE.sub(lambda found: files[found[0]], str(run.spec["strategy"]))]
        for name in fields:
            values = {_json(other.spec.get(name)) for other in twins}
            if len(values) > 1 or usual[name] not in values:
                parts.append(_setting(name, run.spec.get(name)))
        labels.append(", ".join(parts))
    for name in _LAST_RESORT:
        labels = distinguished(labels, [_setting(name, run.spec.get(name)) for run in runs])
    labels = distinguished(labels, [f"run {i + 1}" for i in range(len(runs))])
    varied = any(_json(run.spec.get(name)) != usual[name] for run in runs for name in fields)
    common = ", ".join(_setting(name, json.loads(usual[name])) for name in fields if usual[name] not in ("null", "{}"))
    return tuple(labels), common + (", unless a row says otherwise" if varied else "")


def distinguished(labels: list[str], further: list[str]) -> list[str]:
    """The labels; those that occur several times are followed by their `further` words if these differ."""
    seen: dict[str, set[str]] = {}
    for label, words in zip(labels, further, strict=True):
        seen.setdefault(label, set()).add(words)
    return [f"{a}, {b}" if len(seen[a]) > 1 else a for a, b in zip(labels, further, strict=True)]


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One dict of JSON values per row of the tables; values are fractions, not percent, and None if not finite."""
    found = []
    for group in groups(runs):
        for i, run in enumerate(group.runs):
            measured: dict[str, dict[str, Any]] = {}
            for name, values in group.values(i).items():
                mean, half_width, n = summary(values)
                measured[name] = {"mean": _number(mean), "half_width": _number(half_width), "n_seeds": n}
                measured[name]["values"] = [_number(value) for value in values]
            about = {name: run.about.get(name) for name in ("device", "commit", "version", "folder", "seconds")}
            named = {"stream": group.stream, "stream_options": dict(group.options), "told_task": group.told_task}
            named |= {"label": group.labels[i], "strategy": run.spec["strategy"], "seeds": seeds(run)}
            status = {"status": run.about.get("status", "done"), "note": run.about.get("note", "")}
            found.append({"kind": "run", **named, **status, "metrics": measured, **about})
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
