"""Runs as a table: a row for each accuracy that a run holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lifelong.store.records import Run, digest, seeds

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("run", "stream", "scenario", "strategy", "model", "optimizer", "score", "seed", "after", "on", "accuracy")


def frame(runs: Sequence[Run]) -> pandas.DataFrame:
    """The accuracies of runs as a DataFrame, one row for each run, seed, moment of measuring and task.

    The columns, in this order:

    * run: the digest that identifies the run, sixteen hexadecimal digits.
    * stream, scenario, strategy, model, optimizer: what was learned and how. The stream has its version in its name;
      `scenario` is None where the stream has none.
    * score: what the column `accuracy` holds: 'accuracy', or the name of the score of another problem.
    * seed: its number.
    * after: the number of tasks learned when the accuracy was measured, 0 (the untrained learner) to T.
    * on: the task that the accuracy is of, 1 to T.
    * accuracy: a fraction, 0 to 1, unless `score` says otherwise; NaN where it was not measured.

    So rows with `after == on` hold the accuracy on each task just after it was learned, and those with the highest
    `after` of their run hold the final accuracies.

    Args:
        runs: finished runs, for example `lifelong.run(...)` or the first result of `lifelong.store.runs(folder)`.
    """
    import pandas

    tables = [_table(run) for run in runs]
    return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame(columns=list(_COLUMNS))


def _table(run: Run) -> pandas.DataFrame:
    import pandas

    spec, n_tasks = run.spec, run.accuracy.shape[-1]
    rows = pandas.MultiIndex.from_product([seeds(run), range(n_tasks + 1), range(1, n_tasks + 1)],
                                          names=["seed", "after", "on"])
    table = pandas.DataFrame({"accuracy": run.accuracy.ravel()}, rows).reset_index()
    constants = {"run": digest(spec), "stream": run.stream,
                 "scenario": (spec.get("stream_options") or {}).get("scenario"),
                 "score": (run.about.get("score") or {}).get("name", "accuracy"),
                 **{name: spec.get(name) for name in ("strategy", "model", "optimizer")}}
    return table.assign(**constants)[list(_COLUMNS)]
