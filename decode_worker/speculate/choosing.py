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
    max_nodes: int
    gain: float  # tokens, after all prices
    tokens: float  # expected to be right
    rows: float  # expected to be computed: some drafts are empty
    ahead: Seq[float]  # survival by depth
    offered: float  # share of drafts that are not empty


NO_CHOICE = Choice("", 0, 0.0, 0.0, 0.0, (), 0.0)


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
    if not best:
        return NO_CHOICE
    return Choice(drafter, best, gain, offered * tokens, offered * best, ahead, offered)


def believed_utility(
    choices: Seq[Choice], ratios: Seq[float], drafting: float
) -> tuple[float, float]:
    """Of the whole step against a plain one (Cascade's), and the least survival worth
    a row: top-M over the nodes that are expected. `drafting`: in plain steps."""
    nodes = sorted(((s, c.offered) for c in choices for s in c.ahead[: c.max_nodes]), reverse=True)
    tokens, rows, share = 0.0, 0.0, 1 / len(choices)
    best, least = 0.0, 1.0
    for survival, offered in nodes:
        tokens += survival * offered * share
        rows += offered
        utility = (1 + tokens) / (ratios[min(int(rows + 0.5), len(ratios) - 1)] + drafting)
        if utility > best:
            best, least = utility, survival
    return best, least


def cut(choice: Choice, least: float) -> Choice:
    """Without nodes that survive less often."""
    nodes = sum(survival >= least for survival in choice.ahead[: choice.max_nodes])
    return choice._replace(max_nodes=nodes) if nodes else NO_CHOICE
