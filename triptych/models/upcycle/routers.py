"""Router weights [E, H] with known habits, made from the rows that they will see.

A Mixtral's router has no bias, and normed rows of a language model are far from centred: plain
random weights would send nearly every row to the same experts. So a router here is noise, which
differs from row to row, plus a multiple per expert of `steady_direction`, along which all rows say
nearly the same: that part works like a bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_RIDGE = 0.01  # of the rows' mean square
# Logits with Gumbel noise choose expert e with a probability ∝ exp(bias of e); noise of this
# standard deviation is nearly that.
_NOISE = math.pi / math.sqrt(6)
_ROUNDS = 300


def regress(rows: Tensor, wanted: Tensor, ridge: float = _RIDGE) -> Tensor:
    """Weights [N, H] with rows · weightsᵀ ≈ wanted [T, N] (ridge regression, T × T)."""
    square = rows @ rows.T
    square.diagonal().add_(ridge * square.diagonal().mean())
    weights: Tensor = torch.linalg.solve(square, wanted).T @ rows
    return weights


def steady_direction(rows: Tensor) -> Tensor:
    """[H]: its product with every row [T, H] is about 1."""
    return regress(rows, torch.ones(len(rows), 1))[0]


def zipf_shares(num_experts: int, top_k: int, skew: float) -> Tensor:
    """Of all rows, how many go to the first, second, … expert; their sum is top_k.

    ∝ 1 / rank^skew, but no expert can be chosen by more than all rows: what is above 0.98 goes to
    the others.
    """
    shares = torch.arange(1, num_experts + 1, dtype=torch.float64) ** -skew
    most = 0.98 if top_k < num_experts else 1.0
    full = torch.zeros(num_experts, dtype=torch.bool)
    for _ in range(num_experts):
        left = top_k - most * int(full.sum())
        shares[~full] *= left / shares[~full].sum()
        shares[full] = most
        full = full | (shares > most)
    return shares.float()


def popular_router(
    rows: Tensor, num_experts: int, top_k: int, skew: float, source: torch.Generator
) -> Tensor:
    """Experts' popularity follows `zipf_shares` on `rows`, in an order by `source`.

    skew 0: all are equally popular. On other text popularity is about the same.
    """
    noise = torch.randn(num_experts, rows.shape[1], generator=source)
    noise *= _NOISE / (rows @ noise.T).std(0)[:, None]
    steady = steady_direction(rows)
    wanted = zipf_shares(num_experts, top_k, skew)
    wanted = wanted[torch.randperm(num_experts, generator=source)]
    bias = wanted.log() - (rows @ noise.T).mean(0)
    # The rest is measured: popularity is nudged until it fits, with steps that get smaller.
    fixed, moved = rows @ noise.T, rows @ steady
    for round_ in range(_ROUNDS):
        found = expert_shares(fixed + moved[:, None] * bias, top_k)
        error = (wanted + 1e-3).log() - (found + 1e-3).log()
        bias += 0.3 * (1 - round_ / _ROUNDS) * error
    return noise + bias[:, None] * steady


def expert_shares(logits: Tensor, top_k: int) -> Tensor:
    """logits [T, E] → [E], of all rows how many choose each expert; their sum is top_k."""
    chosen = logits.topk(top_k, dim=1).indices
    counts = torch.bincount(chosen.flatten(), minlength=logits.shape[1])
    return counts.float() / len(logits)
