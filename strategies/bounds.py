"""Baselines: training without protection against forgetting, and training on the data of all tasks."""

from lifelong.learning.parts import Part


def finetune() -> Part:
    """Plain training on one task after another: the lower bound.

    It adds nothing to a sum: `finetune + er` is `er`.
    """
    return Part()


def joint() -> Part:
    """Training on the shuffled data of all tasks for as many steps as the stream has: the upper bound.

    Row t of the accuracy array is measured after the steps of t tasks, so the last row is measured after the whole
    budget of steps.

    Source: "Joint" of van de Ven & Tolias 2019, arXiv:1904.07734.
    """
    return Part(data="all")


def cumulative() -> Part:
    """Training on the data of all tasks so far at every task, without re-initialising the network.

    With `--epochs` the number of steps grows with the data; with `--steps` every task has the same number.

    Source: "Cumulative" of Lomonaco & Maltoni 2017, arXiv:1705.03550.
    """
    return Part(data="seen")
