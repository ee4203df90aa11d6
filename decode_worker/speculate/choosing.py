"""Which drafter a sequence should use, and how far it should draft: pure functions over tables.

All prices are in tokens: what else the step's time would have bought, at the plain rate.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

from decode_worker.speculate.costs import SIZES, size_of
from decode_worker.speculate.draft_costs import DraftCosts
from decode_worker.speculate.yields import HORIZON

SIZE_OF = [size_of(nodes) for nodes in range(HORIZON + 1)]
DRAFT_SIZES = SIZES[: SIZE_OF[HORIZON] + 1]


class Choice(NamedTuple):
    drafter: str
    nodes: int
    gain: float  # tokens, after all prices
    tokens: float  # expected to be right
    rows: float  # expected to be computed: some drafts are empty


NO_CHOICE = Choice("", 0, 0.0, 0.0, 0.0)


def row_price(sequences: int, ratios: Seq[float]) -> float:
    """Of one node, if as many are verified as is cheapest. Steps make the first ones look dear."""
    most = min(8 * sequences, len(ratios) - 1)
    return sequences * min((ratios[n] - 1) / n for n in SIZES if n <= most)


def draft_prices(
    costs: DraftCosts, drafter: str, sequences: int, plain_seconds: float
) -> list[float]:
    """Of one sequence's draft by the bucket of its nodes, if all sequences draft."""
    return [costs.seconds(drafter, sequences, nodes) / plain_seconds for nodes in DRAFT_SIZES]


def best_length(
    drafter: str, ahead: Seq[float], offered: float, limit: int, row: float, prices: Seq[float]
) -> Choice:
    """`ahead`: survival by depth; `offered`: share of drafts that are not empty."""
    best, gain, total, tokens = 0, 0.0, 0.0, 0.0
    for nodes, survival in enumerate(ahead[:limit], 1):
        if survival <= row:
            break
        total += survival - row
        now = offered * total - prices[SIZE_OF[nodes]]
        if now > gain:
            best, gain, tokens = nodes, now, total + nodes * row
    return Choice(drafter, best, gain, offered * tokens, offered * best) if best else NO_CHOICE


def believed_utility(
    choices: Seq[Choice], ratios: Seq[float], draft_seconds: float, plain_seconds: float
) -> float:
    """Of the whole step against a plain one (Cascade's, brief 2.9): tokens / time, in its units."""
    rows = min(round(sum(choice.rows for choice in choices)), len(ratios) - 1)
    tokens = 1 + sum(choice.tokens for choice in choices) / len(choices)
    return tokens / (ratios[rows] + draft_seconds / plain_seconds)
