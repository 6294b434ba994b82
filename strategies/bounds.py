"""What every comparison needs: learning without any protection, and learning with all the data."""

from lifelong.learning.parts import Part


def finetune() -> Part:
    """Plain training on one task after the other: the lower bound.

    It adds nothing to a sum: `finetune + er` is `er`.
    """
    return Part()


def joint() -> Part:
    """Training on all tasks' data, shuffled together, in as many steps as the stream has: the upper bound.

    Row t of the accuracy array is measured after t tasks' worth of these steps, so the last row is the learner that
    has seen every task's data for the whole budget.

    Source: "Joint" of van de Ven & Tolias 2019, arXiv:1904.07734.
    """
    return Part(data="all")


def cumulative() -> Part:
    """At every task, training on the data of all tasks so far; the network is kept, not begun anew.

    With `--epochs` the steps grow with the data; with `--steps` every task has the same number.

    Source: "Cumulative" of Lomonaco & Maltoni 2017, arXiv:1705.03550.
    """
    return Part(data="seen")
