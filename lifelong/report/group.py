"""Which runs can be compared, what each is called, and what its numbers are."""

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

_PLACES = {"finetune": 0, "cumulative": 2, "joint": 3}  # bounds frame a table; everything else is 1, as given
# What of a spec is said elsewhere than in a run's label: by the stream's title, the strategy's name, or `_LAST_RESORT`.
_ELSEWHERE = {"stream", "stream_name", "stream_options", "strategy", "seeds", "eval_every", "hyper", "start", "data",
              "code", "sources", "format"}
_START_FILE = re.compile(r"""(?<=(['"]))(?:(?!\1).)*\.safetensors(?=\1)""")
_LAST_RESORT = ("start", "seeds", "eval_every", "hyper", "code", "sources", "data", "format")


@dataclass(frozen=True)
class Group:
    """Runs on one and the same stream, in the order of the table, each with a label of its own.

    Attributes:
        stream: name of the stream, with its version.
        options: the stream's options.
        runs: finetune first, cumulative and joint last, the others as given.
        labels: the strategy of each run and whatever else sets it apart from the others.
        common: the settings of every run whose label does not say otherwise.
        told: whether these are scores of class-incremental runs that were told the task when tested.
        slug: begins the names of this group's files.
    """

    stream: str
    options: Mapping[str, Any]
    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    common: str
    told: bool
    slug: str

    @property
    def title(self) -> str:
        """The stream with its options, and how it was scored."""
        plain = {"boundaries": True, "examples": None, "test_examples": None}  # what everybody expects is not said
        options = ", ".join(_setting(name, value) for name, value in sorted(self.options.items())
                            if name not in plain or plain[name] != value)
        return self.stream + (f" ({options})" if options else "") + (", told the task when tested" if self.told else "")

    @property
    def digest(self) -> str:
        """Six letters that tell this stream and its options from others."""
        return hashlib.sha256(_json([self.stream, self.options]).encode()).hexdigest()[:6]

    @property
    def unseen(self) -> bool:
        """Whether learners are asked for classes that they have not met: then forward transfer means nothing."""
        both = any("accuracy_task" in run.logs for run in self.runs)  # only class-incremental runs are scored twice
        scenario = "class" if "lengths" in self.options else self.options.get("scenario")
        return not self.told and (both or scenario == "class")

    @property
    def reference(self) -> int | None:
        """Which run intransigence is measured against: cumulative, else joint, else none."""
        bounds = [_bound(run) for run in self.runs]
        return next((bounds.index(name) for name in ("cumulative", "joint") if name in bounds), None)

    @property
    def score(self) -> Score:
        """What the numbers are."""
        return Score.of(self.runs[0])

    @property
    def n_tasks(self) -> int:
        """T."""
        return int(self.runs[0].accuracy.shape[-1])

    def bound(self, i: int) -> bool:
        """Whether run `i` is a bound: finetune, cumulative or joint."""
        return _bound(self.runs[i]) in _PLACES

    def find(self, name: str) -> int | None:
        """The place of the run with this label, else of the first with this strategy; None where there is none."""
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
    """Mean and half width of the interval over the `n` seeds that were measured."""

    mean: float
    half_width: float
    n: int


def summary(values: Array) -> Summary:
    """Mean and interval of what was measured; seeds without a value (they diverged) are left out and not counted."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Summary(np.nan, np.nan, 0)
    mean, half_width = metrics.mean_interval(finite)
    return Summary(float(mean), float(half_width), len(finite))


def diverged(run: Run) -> bool:
    """Whether some seed of the run did not reach the end."""
    return bool(run.about.get("status", "done") != "done")


def sees_all(run: Run) -> bool:
    """Whether the run is a bound that learns from all tasks, which no strategy may."""
    return _PLACES.get(_bound(run), 0) > 1


def alike(run: Run, other: Run, *also: str) -> bool:
    """Whether two runs differ in nothing but the strategy, and what else is named."""
    differ = {"strategy", "hyper", "start", "code", "sources", "seeds", "data", "stream", "stream_name", "format",
              *also}
    return all(_json(run.spec.get(name)) == _json(other.spec.get(name))
               for name in {*run.spec, *other.spec} - differ)


def percent(values: Array, score: Score = Score()) -> str:
    """Values [S] as `mean ± half width`, in percent unless the score is another; as many decimals as show the half
    width."""
    mean, half_width, n = summary(values)
    if not n:
        return "–"
    text = score.interval(mean, half_width)
    return text if n == len(values) else f"{text} ({n}/{len(values)})"


def by_length(run: Run) -> dict[str, Array]:
    """Accuracy after each of a stream's `lengths` over all classes met so far, `test` and `train`, [S, T] each."""
    lengths = run.spec["stream_options"]["lengths"]
    kinds = {"test": run.accuracy}
    if "accuracy_train" in run.logs:
        kinds["train"] = run.logs["accuracy_train"]
    return {kind: metrics.average_curve(a, np.diff([0, *lengths])) for kind, a in kinds.items()}


def groups(runs: Sequence[Run]) -> list[Group]:
    """Comparable runs together: the same stream with the same options, in the order met.

    Class-incremental runs that were also scored with the task told give a second group of those scores.
    """
    told = [replace(run, accuracy=run.logs["accuracy_task"]) for run in runs if "accuracy_task" in run.logs]
    kept: dict[tuple[bool, str], list[Run]] = {}
    for is_told, these in ((False, runs), (True, told)):
        for run in these:
            kept.setdefault((is_told, _json([run.stream, run.spec.get("stream_options")])), []).append(run)
    streams = list(dict.fromkeys(key for _, key in kept))
    files = _short_files(runs)
    ordered = sorted(kept, key=lambda key: (streams.index(key[1]), key[0]))
    found = [_group(kept[key], key[0], files) for key in ordered]
    twice = Counter(group.slug for group in found)
    return [replace(g, slug=f"{g.slug}-{g.digest}") if twice[g.slug] > 1 else g for g in found]


def _short_files(runs: Sequence[Run]) -> dict[str, str]:
    """Every start's file in the strategies by the end of its path that no other file has: most often its name."""
    paths = {found[0] for run in runs for found in _START_FILE.finditer(str(run.spec["strategy"]))}
    ends = {path: ["/".join(path.split("/")[-n:]) for n in range(1, path.count("/") + 2)] for path in paths}
    common = Counter(end for several in ends.values() for end in several)
    return {path: next((end for end in several if common[end] == 1), path) for path, several in ends.items()}


def _group(runs: Sequence[Run], told: bool, files: Mapping[str, str]) -> Group:
    ordered = sorted(runs, key=lambda run: _PLACES.get(_bound(run), 1))
    labels, common = _labels(ordered, files)
    spec = ordered[0].spec
    options = spec.get("stream_options") or {}
    words = [ordered[0].stream, str(options.get("scenario", "")), "told" * told]
    slug = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")
    return Group(ordered[0].stream, options, tuple(ordered), labels, common, told, slug)


def _bound(run: Run) -> str:
    """The strategy's bare name, where it is one strategy and no sum."""
    return re.sub(r"\(.*\)$", "", str(run.spec["strategy"])).strip()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _setting(name: str, value: Any) -> str:
    if name in ("model", "optimizer"):
        return str(value)  # adam(lr=0.001) says itself what it is
    return f"{name}={_json(value) if isinstance(value, Mapping | list) else value}"


def _labels(runs: Sequence[Run], files: Mapping[str, str]) -> tuple[tuple[str, ...], str]:
    """One label per run, no two alike, and the settings that hold wherever a label does not say otherwise."""
    fields = [name for name in dict.fromkeys(name for run in runs for name in run.spec) if name not in _ELSEWHERE]
    usual = {name: Counter(_json(run.spec.get(name)) for run in runs).most_common(1)[0][0] for name in fields}
    labels = []
    for run in runs:
        twins = [other for other in runs if other.spec["strategy"] == run.spec["strategy"]]
        said = [_START_FILE.sub(lambda found: files[found[0]], str(run.spec["strategy"]))]
        for name in fields:
            values = {_json(other.spec.get(name)) for other in twins}
            if len(values) > 1 or usual[name] not in values:
                said.append(_setting(name, run.spec.get(name)))
        labels.append(", ".join(said))
    for name in _LAST_RESORT:
        labels = told_apart(labels, [_setting(name, run.spec.get(name)) for run in runs])
    labels = told_apart(labels, [f"run {i + 1}" for i in range(len(runs))])
    varied = any(_json(run.spec.get(name)) != usual[name] for run in runs for name in fields)
    common = ", ".join(_setting(name, json.loads(usual[name])) for name in fields if usual[name] not in ("null", "{}"))
    return tuple(labels), common + (", unless a row says otherwise" if varied else "")


def told_apart(labels: list[str], further: list[str]) -> list[str]:
    """Labels that occur several times, each with its `further` words where these differ."""
    seen: dict[str, set[str]] = {}
    for label, words in zip(labels, further, strict=True):
        seen.setdefault(label, set()).add(words)
    return [f"{a}, {b}" if len(seen[a]) > 1 else a for a, b in zip(labels, further, strict=True)]


def rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One JSON-able mapping per line of the tables; fractions, not percent; what is not finite is None."""
    found = []
    for group in groups(runs):
        for i, run in enumerate(group.runs):
            measured: dict[str, dict[str, Any]] = {}
            for name, values in group.values(i).items():
                mean, half_width, n = summary(values)
                measured[name] = {"mean": _number(mean), "half_width": _number(half_width), "n_seeds": n}
                measured[name]["values"] = [_number(value) for value in values]
            about = {name: run.about.get(name) for name in ("device", "commit", "version", "folder", "seconds")}
            named = {"stream": group.stream, "stream_options": dict(group.options), "told_task": group.told}
            named |= {"label": group.labels[i], "strategy": run.spec["strategy"], "seeds": seeds(run)}
            status = {"status": run.about.get("status", "done"), "note": run.about.get("note", "")}
            found.append({"kind": "run", **named, **status, "metrics": measured, **about})
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
