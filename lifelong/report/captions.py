"""The captions of figures: what is shown, its definition, the number of seeds, and the kind of interval."""

from __future__ import annotations

import numpy as np

from lifelong.report.canvas import BANDS
from lifelong.report.figures import compared, shown
from lifelong.report.group import Group
from lifelong.report.sentences import counted
from lifelong.store.records import Run

_TITLES = {"curves": "Average accuracy over the tasks seen so far",
           "forgetting": "Average forgetting of the tasks learned so far",
           "tasks": "Accuracy on each task after every task", "matrix": "Accuracy matrices",
           "transfer": "Backward and forward transfer", "within": "Accuracy within tasks",
           "plane": "Final accuracy against forgetting", "cost": "Final accuracy against cost"}
_DEFINED = {
    "curves": "(1/t) Σ_{k≤t} a[t,k] after task t",
    "forgetting": "(1/(t-1)) Σ_{k<t} (max_{1≤s<t} a[s,k] - a[t,k]) after task t (Chaudhry et al. 2018, eq. 3)",
    "tasks": "a[t,k], the accuracy on task k after task t; t = 0 is the untrained learner; dotted lines mark when task "
             "k was learned",
    "matrix": "a[t,k], the accuracy on task k after task t; row 0 is the untrained learner; grey: not measured",
    "transfer": "backward transfer (1/(T-1)) Σ_{k<T} (a[T,k] - a[k,k]), forward transfer (1/(T-1)) Σ_{k>1} (a[k-1,k] - "
                "a[0,k]); small dots: seeds",
    "within": "accuracy on task 1, and mean accuracy over all tasks before the current one, measured every few steps "
              "within tasks and after each task; the temporary drop within a task is the stability gap (De Lange et "
              "al. 2023)",
    "plane": "average accuracy (1/T) Σ_k a[T,k] against forgetting (1/(T-1)) Σ_{k<T} (max_{1≤t<T} a[t,k] - a[T,k]); "
             "the upper left corner is best",
    "cost": "average accuracy (1/T) Σ_k a[T,k] against ",
}


def titled(group: Group, name: str) -> str:
    """The title of a group's figure, by the figure's name."""
    return group.score.named(_TITLES[name])


def _gaps(run: Run) -> bool:
    """Whether some task has no measurement after it but a later task has one."""
    after = np.isfinite(run.accuracy[:, 1:]).any((0, 2))
    return bool((np.diff(after.astype(int)) > 0).any() or (after.any() and not after[0]))


def caption(group: Group, name: str) -> str:
    """The caption of a group's figure, by the figure's name."""
    which = shown(group)
    text = f"{titled(group, name)}: {_DEFINED[name].replace('accuracy', group.score.name)}"
    if name == "cost":
        text += "; ".join(kind.definition for kind in compared(group))
    if name == "transfer" and group.unseen:
        text += "; forward transfer is not defined here, because a learner cannot predict unseen classes"
    bars = "bars" if len(which) > BANDS or name in ("transfer", "plane", "cost") else "bands"
    many = max(len(group.runs[i].accuracy) for i in which) > 1
    of = counted([len(group.runs[i].accuracy) for i in which])
    if name in ("tasks", "within") and bars == "bars":
        text += f". Means over {of}; the tables have the intervals, which are omitted for so many strategies"
    elif name != "matrix":
        text += f". Means over {of}" + (f"; {bars}: 95 % t intervals over seeds" if many else ": no interval")
    else:
        text += f". Means over {of}; the tables have the intervals"
    if name in ("curves", "forgetting", "tasks") and any(_gaps(group.runs[i]) for i in which):
        text += ". Lines connect the tasks after which it was measured"
    if len(which) < len(group.runs):
        text += (f". {len(which)} of {len(group.runs)} strategies are shown: the bounds and those with the highest "
                 f"average {group.score.name}")
    return text + "."
