"""Who asks a drafter whose drafts cost time, and for how many nodes. Pure.

Such drafters (heads, models) work level by level for all who ask: the longest draft of a step sets
its price, so one length is chosen for all. Those that draft trees choose their depth by themselves
and are asked for all that there is room for: with fewer nodes they are right less often, and
hardly sooner. All figures are in tokens: a step's time buys as many as
it draws plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)


class Asker(NamedTuple):
    place: int  # among the candidates
    ahead: Seq[float]  # survival by depth of what it would get
    made: float  # tokens that it has a draft for already
    breadth: float = 1.0  # nodes of a level of what it would get


class Order(NamedTuple):
    """An ask for drafts of `nodes` nodes, for these places; `gain` after all prices."""

    places: tuple[int, ...] = ()
    nodes: int = 0
    gain: float = 0.0


def best_order(
    askers: Seq[Asker],
    row: float,
    price: Callable[[int, int], float],
    margin: float,
    lengths: Seq[int] = LENGTHS,
    most: int | None = None,
) -> Order:
    """`row`: of verifying a node; `price`: of an ask for (sequences, nodes); `lengths`: that may be
    asked for; `most`: sequences that may ask, None: all.
    """
    worth = [_worths(asker, row) for asker in askers]
    best = Order(gain=margin)
    for nodes in lengths:
        gains = [own[min(nodes, len(own) - 1)] for own in worth]
        ranked = sorted(range(len(askers)), key=lambda at: -gains[at])[:most]
        chosen = [at for at in ranked if gains[at] > 0]
        if chosen:
            total = sum(gains[at] for at in chosen) - price(len(chosen), nodes)
            places = tuple(sorted(askers[at].place for at in chosen))
            best = Order(places, nodes, total) if total > best.gain else best
    return best if best.places else Order()


def _worths(asker: Asker, row: float) -> list[float]:
    """By levels: what its draft brings more than the one that is there."""
    worths = [-asker.made]
    for survival in asker.ahead:
        worths.append(worths[-1] + max(0.0, survival - row * asker.breadth))
    return worths
