"""The contract of objects that learn: checks for strategies that are no sum of parts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lifelong.data.stream import Stream
from lifelong.learning.engine import Measured, Rhythm
from lifelong.learning.imperative import object_scores, train_object
from lifelong.learning.schedule import Budget
from lifelong.store.checkpoints import plain


def object_checks(make: Callable[[], Any], stream: Stream, budget: Budget) -> Iterator[tuple[str, str | None]]:
    """(name of the check, error or None) for every check of an object that learns.

    Args:
        make: makes the object, which is trained on the first seed of the stream.
        stream, budget: small ones, on which it can learn.
    """
    made = deque[Any](maxlen=1)

    def once() -> Any:
        made.append(make())
        return made[-1]

    def go(rhythm: Rhythm = Rhythm(), resume: dict[str, Any] | None = None) -> Measured:
        return train_object(once, stream, 0, 0, budget, rhythm, resume=resume)

    taken: list[dict[str, Any]] = []
    whole = go(Rhythm(save_every=0.0, save=lambda c: taken.append(_frozen(c))))
    if whole.over:
        task, step = whole.diverged[0].tolist()
        yield "learns", f"its loss or a score is not finite at task {task}, step {step}"
        return
    yield "predicts_scores", _answers(made[-1], stream)
    good = float(whole.accuracy[0, 1, 0]) >= 0.6
    yield "learns", None if good else "after task 0 it answers little better than chance"
    same = torch.equal(go().accuracy, whole.accuracy)
    yield "same_seed_same_result", None if same else "the same seed gives two results: is there randomness of its own?"
    again = go(resume=_frozen(taken[len(taken) // 2]))
    yield "resumes_to_the_same_bits", (None if torch.equal(again.accuracy, whole.accuracy)
                                       else "resumed from state_dict() it ends differently: something is not in it")


@torch.no_grad()
def _answers(learner: Any, stream: Stream) -> str | None:
    """What is wrong with the scores of a trained object."""
    x, _ = stream.pool().lane({k: v[0] for k, v in stream.lanes([0]).items()}).fetch(stream.test[0].flatten())

    def scores(x: Tensor) -> Tensor:
        return object_scores(learner, x, stream.n_classes, 0 if stream.scenario == "task" else None)

    first = scores(x)
    if not torch.allclose(first, scores(x), 1e-6, 1e-6):
        return "predict gives one example two answers: is dropout on? Call eval() in predict, and train() in observe"
    if not torch.allclose(first[:3], scores(x[:3]), 1e-3, 1e-5):
        return ("an example's scores depend on the examples beside it: does batch normalisation use their statistics? "
                "Call eval() in predict, and train() in observe")
    return None


def _frozen(checkpoint: Any) -> Any:
    """A copy, made by saving and loading as a store does."""
    import io

    plain(checkpoint["object"], "state_dict()")
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
