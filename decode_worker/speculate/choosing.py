"""Who should draft for a sequence, and how far: pure functions over tables.

All prices are in tokens: what else the step's time would have bought, at the plain rate.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import NamedTuple

from decode_worker.speculate.costs import SIZES, size_of
from decode_worker.speculate.yields import HORIZON

SIZE_OF = [size_of(nodes) for nodes in range(HORIZON + 1)]
DRAFT_SIZES = SIZES[: SIZE_OF[HORIZON] + 1]


class Choice(NamedTuple):
    drafter: str
    max_nodes: int
    gain: float  # tokens, after all prices
    surplus: float  # the same before the price of drafting


NO_CHOICE = Choice("", 0, 0.0, 0.0)


def row_price(sequences: int, ratios: Seq[float]) -> float:
    """Of one node, if as many are verified as is cheapest. Steps make the first ones look dear."""
    most = min(8 * sequences, len(ratios) - 1)
    return sequences * min((ratios[n] - 1) / n for n in SIZES if n <= most)


def best_length(
    drafter: str, ahead: Seq[float], limit: int, row: float, prices: Seq[float]
) -> Choice:
    """`ahead`: survival by depth; `prices`: of the draft, by the bucket of its nodes."""
    best, gain, total, surplus = 0, 0.0, 0.0, 0.0
    for nodes, survival in enumerate(ahead[:limit], 1):
        if survival <= row:
            break
        total += survival - row
        now = total - prices[SIZE_OF[nodes]]
        if now > gain:
            best, gain, surplus = nodes, now, total
    return Choice(drafter, best, gain, surplus) if best else NO_CHOICE


def worth_of(survivals: Seq[float], row: float) -> float:
    """Tokens that a draft is expected to bring, after the price of its rows."""
    return sum(survival - row for survival in survivals if survival > row)


def that_pay(
    choices: list[Choice], made: Seq[float], price: Callable[[str, int, int], float]
) -> list[Choice]:
    """Without drafters whose batch is too small to pay.

    `made`: what the drafts that are there bring to each sequence; `price`: in tokens of the batch,
    of a drafter for (sequences, nodes of the longest draft). A choice was made as if everybody
    drafted; now it is known who does.
    """
    for drafter in {choice.drafter for choice in choices if choice.max_nodes}:
        own = [at for at, choice in enumerate(choices) if choice.drafter == drafter]
        gained = sum(choices[at].surplus - made[at] for at in own)
        if gained <= price(drafter, len(own), max(choices[at].max_nodes for at in own)):
            choices = [NO_CHOICE if c.drafter == drafter else c for c in choices]
    return choices
