"""Strategies that rehearse remembered examples."""

from torch import Tensor

from lifelong.learner import Part, State, View, rehearsal
from lifelong.memory import RULES
from lifelong.registry import at_least, one_of


def er(capacity: int = 500, replay: int = 0, memory: str = "reservoir") -> Part:
    """Experience replay: learn each batch together with `replay` remembered examples.

    Args:
        capacity: examples remembered over the whole stream, 1 or more.
        replay: remembered examples rehearsed at every step; 0 means as many as the batch has.
        memory: 'reservoir', a uniform sample of all seen, or 'class-balanced', an equal share for every class.

    Source: Chaudhry et al. 2019, arXiv:1902.10486. The replayed loss is added to the batch's, not averaged with it;
        rehearsed examples are drawn with replacement, before the batch itself is remembered.
    """
    at_least(1, capacity=capacity)
    at_least(0, replay=replay)
    keep = RULES[one_of("memory", memory, RULES)](capacity)

    def numbers(batch_size: int) -> int:  # for the ranks of the batch, then for the draw
        return batch_size + (replay or batch_size)

    def recall(view: View) -> Tensor:
        return keep.pick(view.state, view.u[len(view.batch.rows):])

    def remember(view: View) -> State:
        batch = view.batch
        return keep.add(view.state, batch.rows, batch.y, view.u[: len(batch.rows)])

    return Part(init=lambda view: keep.empty(), draws=numbers, recall=recall,
                loss=rehearsal, step=remember)
