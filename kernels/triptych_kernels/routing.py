"""Which experts a row goes to, and how their answers become one row: the truth, in plain torch.

As everywhere, a row's bits depend on that row alone. A row's experts ascend by id, and all sums
over them run in that order: whoever answered first, the sum is the same.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

_LEAST_SUM = 1e-20  # added to a sum of sigmoids that is divided by, which may be zero


class RoutingLike(Protocol):
    """How a row's `top_k` experts and their weights follow from its logits."""

    @property
    def num_experts(self) -> int: ...

    @property
    def top_k(self) -> int: ...

    @property
    def scoring(self) -> Literal["softmax", "sigmoid", "softmax_of_chosen"]:
        """What becomes of the logits; of_chosen: when the choice is made, over the chosen alone."""

    @property
    def renormalise(self) -> bool:
        """The chosen experts' scores are divided by their sum."""

    @property
    def scale(self) -> float:
        """Of the weights, last."""

    @property
    def groups(self) -> int:
        """Equal groups of neighbouring experts, of which the best `groups_kept` take part."""

    @property
    def groups_kept(self) -> int: ...

    @property
    def group_score(self) -> Literal["max", "two_best"]:
        """Of a group: the best score in it, or the sum of the two best."""


def route(
    logits: Tensor, routing: RoutingLike, correction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """logits float32 [M, E] → ids int32 [M, k], ascending, and their weights float32 [M, k].

    `correction` [E] float32 is added to the scores for the choice; the weights are without it
    (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Of equal scores, and of groups with equal
    scores, the lowest id wins. Groups as in DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
    """
    assert logits.dtype == torch.float32 and logits.shape[1] == routing.num_experts
    scores = _scores(logits, routing)
    choice = scores if correction is None else scores + correction
    if routing.groups > 1:
        choice = _best_groups(choice, routing)
    ids = _best(choice, routing.top_k)
    weights = scores.gather(1, ids)
    if routing.scoring == "softmax_of_chosen":
        weights = weights.softmax(-1)
    if routing.renormalise:
        weights = weights / _sum_in_order(weights, routing)
    if routing.scale != 1.0:
        weights = weights * routing.scale
    return ids.to(torch.int32), weights


def combine(cells: Tensor, weights: Tensor | None, shared: Tensor | None = None) -> Tensor:
    """Σ_j weights[m, j] · cells[m · k + j], in the order of j, + shared[m] → float32 [M, H].

    cells [M · k, H] float32 or bfloat16; weights [M, k] float32, None: k is 1 and the weight too;
    shared [M, H] float32. Every term is added with one rounding, as a fused multiply-add does: the
    product of two float32 is exact in float64.
    """
    if weights is None:
        total = cells.float()
    else:
        rows, k = weights.shape
        by_row = cells.view(rows, k, -1)
        total = torch.zeros(rows, by_row.shape[2])
        for j in range(k):
            terms = weights[:, j, None].double() * by_row[:, j]
            total = terms.add_(total).float()
    return total if shared is None else total + shared


def _scores(logits: Tensor, routing: RoutingLike) -> Tensor:
    """[M, E], what the choice is made by."""
    match routing.scoring:
        case "softmax":
            return logits.softmax(-1)
        case "sigmoid":
            # Not torch.sigmoid, whose bits depend on where an element lies (see `silu_mul`).
            return 1.0 / (1.0 + torch.exp(-logits))
        case "softmax_of_chosen":
            return logits


def _best(scores: Tensor, count: int) -> Tensor:
    """scores [M, N] → the places [M, count] of each row's best, ascending; ties: the first."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values


def _best_groups(choice: Tensor, routing: RoutingLike) -> Tensor:
    """The same scores, −∞ in all groups but the best."""
    grouped = choice.view(choice.shape[0], routing.groups, -1)
    if routing.group_score == "max":
        of_groups = grouped.amax(-1)
    else:
        of_groups = grouped.topk(min(2, grouped.shape[2])).values.sum(-1)
    kept = _best(of_groups, routing.groups_kept)
    outside = torch.ones_like(of_groups, dtype=torch.bool).scatter(1, kept, False)
    return grouped.masked_fill(outside[:, :, None], -torch.inf).flatten(1)


def _sum_in_order(weights: Tensor, routing: RoutingLike) -> Tensor:
    """[M, k] → [M, 1]."""
    total = weights[:, :1]
    for j in range(1, weights.shape[1]):
        total = total + weights[:, j : j + 1]
    return total + _LEAST_SUM if routing.scoring == "sigmoid" else total
