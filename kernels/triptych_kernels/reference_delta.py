"""Linear attention with gated delta rule (arXiv 2412.06464), token by token: the only form, so that
no cut of a prompt can show in a bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6  # of the norms of queries and keys


def gated_delta(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    state: Tensor,
    history: Tensor,
    key_heads: int,
) -> Tensor:
    """Takes rows that stand one behind the other into `state` [Hv, Dk, Dv] and `history`
    [K − 1, C], both float32 and changed in place → [M, Hv, Dv] float32.

    mixed [M, C], C = 2·Hk·Dk + Hv·Dv: queries, keys, values before their convolution along time,
    whose weights are conv [K, C], the last ones the row's own. decay [M, Hv]: what a head keeps of
    its state, in (0, 1]; beta [M, Hv]: how much of a row's value it takes.

    Every row is computed by operations of one shape, whatever M is.
    """
    heads, key_dim, value_dim = state.shape
    keys = key_heads * key_dim
    out = mixed.new_empty(len(mixed), heads, value_dim, dtype=torch.float32)
    for row in range(len(mixed)):
        seen = torch.cat([history, mixed[row : row + 1].float()])
        history.copy_(seen[1:])
        summed = seen[0] * conv[0]
        for tap in range(1, len(conv)):
            summed = summed + seen[tap] * conv[tap]
        active = summed * (1.0 / (1.0 + torch.exp(-summed)))
        query = _unit(active[:keys].view(key_heads, key_dim)) * key_dim**-0.5
        key = _unit(active[keys : 2 * keys].view(key_heads, key_dim))
        query, key = (x.repeat_interleave(heads // key_heads, 0)[..., None] for x in (query, key))
        value = active[2 * keys :].view(heads, value_dim)
        state.mul_(decay[row, :, None, None])
        change = (value - (state * key).sum(1)) * beta[row, :, None]
        state.add_(key * change[:, None])
        out[row] = (state * query).sum(1)
    return out


def _unit(heads: Tensor) -> Tensor:
    """heads [H, D], each divided by its length."""
    return heads * torch.rsqrt((heads * heads).sum(-1, keepdim=True) + _EPS)
