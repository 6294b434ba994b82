"""Which runs can be compared, what each is called, and what its numbers are."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lifelong import metrics
from lifelong.metrics import Array
from lifelong.store import Run

_PLACES = {"finetune": 0, "cumulative": 2, "joint": 3}  # bounds frame a table; everything else is 1, as given
_ELSEWHERE = {"stream", "stream_options", "strategy", "seeds", "eval_every", "hyper", "start", "sources", "format"}
_LAST_RESORT = ("start", "seeds", "eval_every", "hyper", "sources", "format")


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
        """Six letters that tell these options from others."""
        return hashlib.sha256(_json(self.options).encode()).hexdigest()[:6]

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

    def values(self, i: int) -> dict[str, Array]:
        """Every metric that applies to run `i`, one value per seed."""
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


def seeds(run: Run) -> list[int]:
    """The seeds of a run: 0..S-1 unless its spec lists others."""
    listed = run.spec.get("seeds")
    return list(listed) if isinstance(listed, Sequence) else list(range(len(run.accuracy)))


def diverged(run: Run) -> bool:
    """Whether some seed of the run did not reach the end."""
    return bool(run.about.get("status", "done") != "done")


def groups(runs: Sequence[Run]) -> list[Group]:
    """Comparable runs together: the same stream with the same options, in the order met.

    Class-incremental runs that were also scored with the task told give a second group of those scores.
    """
    told = [replace(run, accuracy=run.logs["accuracy_task"]) for run in runs if "accuracy_task" in run.logs]
    kept: dict[tuple[bool, str], list[Run]] = {}
    for is_told, these in ((False, runs), (True, told)):
        for run in these:
            kept.setdefault((is_told, _json([run.spec["stream"], run.spec.get("stream_options")])), []).append(run)
    streams = list(dict.fromkeys(key for _, key in kept))
    ordered = sorted(kept, key=lambda key: (streams.index(key[1]), key[0]))
    found = [_group(kept[key], key[0]) for key in ordered]
    twice = Counter(group.slug for group in found)
    return [replace(g, slug=f"{g.slug}-{g.digest}") if twice[g.slug] > 1 else g for g in found]


def _group(runs: Sequence[Run], told: bool) -> Group:
    ordered = sorted(runs, key=lambda run: _PLACES.get(_bound(run), 1))
    labels, common = _labels(ordered)
    spec = ordered[0].spec
    options = spec.get("stream_options") or {}
    words = [spec["stream"], str(options.get("scenario", "")), "told" * told]
    slug = re.sub(r"[^\w.]+", "-", "-".join(words)).strip("-")
    return Group(spec["stream"], options, tuple(ordered), labels, common, told, slug)


def _bound(run: Run) -> str:
    """The strategy's bare name, where it is one strategy and no sum."""
    return re.sub(r"\(.*\)$", "", str(run.spec["strategy"])).strip()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _setting(name: str, value: Any) -> str:
    if name in ("model", "optimizer"):
        return str(value)  # adam(lr=0.001) says itself what it is
    return f"{name}={_json(value) if isinstance(value, Mapping | list) else value}"


def _labels(runs: Sequence[Run]) -> tuple[tuple[str, ...], str]:
    """One label per run, no two alike, and the settings that hold wherever a label does not say otherwise."""
    fields = [name for name in dict.fromkeys(name for run in runs for name in run.spec) if name not in _ELSEWHERE]
    usual = {name: Counter(_json(run.spec.get(name)) for run in runs).most_common(1)[0][0] for name in fields}
    labels = []
    for run in runs:
        twins = [other for other in runs if other.spec["strategy"] == run.spec["strategy"]]
        said = [str(run.spec["strategy"])]
        for name in fields:
            values = {_json(other.spec.get(name)) for other in twins}
            if len(values) > 1 or usual[name] not in values:
                said.append(_setting(name, run.spec.get(name)))
        labels.append(", ".join(said))
    for name in _LAST_RESORT:
        labels = _told_apart(labels, [_setting(name, run.spec.get(name)) for run in runs])
    labels = _told_apart(labels, [f"run {i + 1}" for i in range(len(runs))])
    varied = any(_json(run.spec.get(name)) != usual[name] for run in runs for name in fields)
    common = ", ".join(_setting(name, json.loads(usual[name])) for name in fields if usual[name] not in ("null", "{}"))
    return tuple(labels), common + (", unless a row says otherwise" if varied else "")


def _told_apart(labels: list[str], further: list[str]) -> list[str]:
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
            found.append({**named, **status, "metrics": measured, **about})
    return found


class Comparison(NamedTuple):
    """One strategy against the first of its group in average accuracy, on the seeds that both have.

    `p` is adjusted by Holm over the group, and `smallest_p` is the least that it could have been with these seeds.
    """

    label: str
    difference: metrics.Paired
    n: int
    p: float
    smallest_p: float


def comparisons(group: Group) -> list[Comparison]:
    """Every later run of a group against its first; runs of which a seed was not measured to the end are left out."""
    first = dict(zip(seeds(group.runs[0]), group.values(0)["average_accuracy"], strict=True))
    paired = []
    for i in range(1, len(group.runs)):
        own = dict(zip(seeds(group.runs[i]), group.values(i)["average_accuracy"], strict=True))
        both = [seed for seed in first if seed in own]
        if both and np.isfinite([*first.values(), *own.values()]).all():
            difference = metrics.paired_difference([own[seed] for seed in both], [first[seed] for seed in both])
            paired.append((group.labels[i], difference, len(both)))
    adjusted = metrics.holm([difference.p for _, difference, _ in paired])
    least = metrics.holm([metrics.smallest_p(n) for _, _, n in paired])
    return [Comparison(*found, float(p), float(q)) for found, p, q in zip(paired, adjusted, least, strict=True)]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
