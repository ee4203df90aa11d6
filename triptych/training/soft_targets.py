"""Cross-entropy against the target's distribution, without ever holding all logits.

Logits of 8,000 tokens for every row and pass are far more than caches hold. So rows go through in
chunks, and a chunk's gradients are made while its logits are there ("fused linear cross-entropy",
Liger Kernel, arXiv 2410.10989), here with soft targets that all passes of a chunk share.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK = 256  # rows of each pass


class Target(NamedTuple):
    """The distribution to learn: softmax over the head's vocabulary of `final` @ `rows`ᵀ."""

    final: Tensor  # bfloat16 [N, H]
    rows: Tensor  # bfloat16 [Vd, H], the target's
    softcap: float | None
    ids: Tensor  # int64 [N], columns of what was really written; −1: none


def soft_target_loss(
    head: Tensor, hidden: Tensor, weights: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """head [Vd, H]; hidden [passes, N, H]; weights [passes, N] of each row's cross-entropy.

    Returns the weighted sum of the cross-entropies (of head and hidden it knows the gradients) and
    where each pass finds most likely what was written, bool [passes, N].
    """
    loss, right = _SoftTargetLoss.apply(head, hidden, weights, target)  # type: ignore[no-untyped-call]
    return loss, right


class _SoftTargetLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, hidden: Tensor, weights: Tensor, target: Target
    ) -> tuple[Tensor, Tensor]:
        matrix, rows = head.bfloat16(), hidden.bfloat16()
        of_head, of_rows = torch.zeros_like(head), torch.empty_like(rows)
        right = torch.empty(rows.shape[:2], dtype=torch.bool)
        loss = 0.0
        for begin in range(0, rows.shape[1], _CHUNK):
            part = slice(begin, begin + _CHUNK)
            own = rows[:, part]
            logits = (own.flatten(0, 1) @ matrix.t()).view(*own.shape[:2], -1)
            log_probs = torch.log_softmax(logits, -1, torch.float32)
            right[:, part] = _is_best(log_probs, target.ids[part])
            wanted = _distribution(target, part)
            weight = weights[:, part, None]
            loss -= float((torch.einsum("pnv,nv->pn", log_probs, wanted) * weights[:, part]).sum())
            slope = log_probs.exp_().sub_(wanted).mul_(weight).bfloat16().flatten(0, 1)
            of_rows[:, part] = (slope @ matrix).view(own.shape)
            of_head += slope.t() @ own.flatten(0, 1)
        ctx.save_for_backward(of_head, of_rows)
        ctx.mark_non_differentiable(right)
        return head.new_tensor(loss), right

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        of_head, of_rows = ctx.saved_tensors
        return of_head * slopes[0], of_rows.float() * slopes[0], None, None


def _is_best(log_probs: Tensor, ids: Tensor) -> Tensor:
    """log_probs [passes, N, Vd], ids [N] → [passes, N]. Faster than an argmax."""
    places = ids.clamp(min=0)[None, :, None].expand(len(log_probs), -1, 1)
    own = log_probs.gather(-1, places).squeeze(-1)
    return (own == log_probs.amax(-1)) & (ids >= 0)


def _distribution(target: Target, part: slice) -> Tensor:
    logits = (target.final[part] @ target.rows.t()).float()
    if target.softcap is not None:
        logits = torch.tanh(logits / target.softcap) * target.softcap
    return torch.softmax(logits, -1)
