"""Converts the measurements of lanes into the arrays and the status of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lifelong.data.stream import Stream
from lifelong.learning.engine import Measured


def of(measured: Measured, lanes: slice) -> Measured:
    """The tables of some lanes: values and losses."""
    return replace(measured, values=measured.values[:, lanes], loss=measured.loss[lanes])


def n_lanes(parts: list[dict[str, Any]]) -> int:
    """Total number of lanes in the parts of a stack."""
    return sum(len(part["loss"]) for part in parts)


def logs(measured: Measured, lanes: slice, stream: Stream) -> dict[str, np.ndarray]:
    """The arrays of one run besides its accuracy, from the lanes of its seeds."""
    tables = of(measured, lanes)
    found = {"loss": tables.loss.numpy(), "steps": measured.steps[lanes].numpy()}
    several = stream.scenario == "class" and bool((stream.classes.sum(-1) > 1).any())
    if several and not stream.ordered:  # the tasks of an ordered stream are only points of evaluation
        found["accuracy_task"] = tables.told.numpy()
    if stream.retention:
        found["accuracy_train"] = tables.retained.numpy()
    if len(measured.curve):
        found |= {"curve": measured.curve[:, lanes].transpose(0, 1).numpy(),
                  "curve_step": measured.curve_step.numpy()}
    return found


def joined(parts: list[dict[str, Any]]) -> Measured:
    """The measurements of lanes that were trained in turns, merged."""
    merged = {k: torch.cat([part[k] for part in parts]) for k in ("loss", "diverged", "steps")}
    merged["place"] = max((part["place"] for part in parts), key=len)  # a part in which all lanes diverged has fewer
    merged["values"] = torch.cat([F.pad(part["values"], (0, len(merged["place"]) - len(part["place"])),
                                        value=torch.nan) for part in parts], 1)
    places = sorted({tuple(place) for part in parts for place in part["curve_step"].tolist()})
    n, n_tasks = merged["loss"].shape
    curve, first = torch.full((len(places), n, n_tasks), torch.nan, dtype=torch.float64), 0
    for part in parts:  # a part with shorter tasks has fewer points
        last = first + len(part["loss"])
        for point, place in zip(part["curve"], part["curve_step"].tolist(), strict=True):
            curve[places.index(tuple(place)), first:last] = point
        first = last
    return Measured(**merged, curve=curve, curve_step=torch.tensor(places, dtype=torch.int64).view(-1, 2))


def fate(diverged: torch.Tensor) -> dict[str, Any]:
    """The status and note of a run whose seeds diverged at `diverged` [S, 2] (task and step; -1 if they did not)."""
    bad = {seed: at for seed, at in enumerate(diverged.tolist()) if at[0] >= 0}
    if not bad:
        return {"status": "done", "note": ""}
    where = "; ".join(f"seed {seed} at task {task}, step {step}" for seed, (task, step) in bad.items())
    note = f"loss, scores or parameters not finite: {where}; a smaller step size or strength may help"
    return {"status": "diverged", "note": note}
