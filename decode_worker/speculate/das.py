"""How a batch should share its drafts for its longest sequence to end soonest (DAS, 2511.13841).

DAS = "Beat the long tail", arXiv 2511.13841. A step costs `base` seconds and `per_node` more for
each node; sequence i still wants `length` tokens, and of p proposed nodes k·l·(1 - exp(-α·p / l))
are accepted. The batch takes as many steps as its slowest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import ceil, exp, inf, log
from typing import NamedTuple

HALVINGS = 40


class Tail(NamedTuple):
    """What a sequence still has before it."""

    length: float  # tokens expected
    ceiling: float = 0.8  # k: share of its tokens that drafts could bring at best, below 1
    efficiency: float = 1.0  # α: how soon that is approached


def accepted(tail: Tail, proposals: float) -> float:
    """Tokens (their Eq. 4)."""
    return tail.ceiling * tail.length * (1 - exp(-tail.efficiency * proposals / tail.length))


def proposals_for(tail: Tail, steps: float) -> float:
    """Nodes to propose in all so that the sequence needs `steps` steps; inf if none suffice.

    Their Eq. 7 prints 1 - k·(1 - N/l) as the logarithm's argument, which does not satisfy their
    Eq. 4 unless k = 1; this is Eq. 4 solved.
    """
    if tail.length <= steps:
        return 0.0
    left = 1 - (1 - steps / tail.length) / tail.ceiling
    return inf if left <= 0 else -tail.length / tail.efficiency * log(left)


def best_steps(tails: Seq[Tail], base: float, per_node: float) -> float:
    """N that minimises base·N + per_node·Σ proposals: where one step less costs what it saves."""
    least = max(tail.length * (1 - tail.ceiling) for tail in tails)
    most = max(tail.length for tail in tails)
    for _ in range(HALVINGS):
        steps = (least + most) / 2
        price = per_node * sum(
            1 / (tail.efficiency * max(steps / tail.length - 1 + tail.ceiling, 1e-12))
            for tail in tails
            if tail.length > steps
        )
        if price > base:
            least = steps
        else:
            most = steps
    return most


def nodes_per_step(tails: Seq[Tail], base: float, per_node: float) -> list[int]:
    """K of every sequence, rounded up; 0 for those that end in time anyway."""
    if not tails:
        return []
    steps = best_steps(tails, base, per_node)
    return [ceil(min(proposals_for(tail, steps) / steps, 1e6)) for tail in tails]
