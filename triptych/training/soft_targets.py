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


def soft_target_loss(
    head: Tensor, hidden: Tensor, weights: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """head [Vd, H]; hidden [passes, N, H]; weights [passes, N] of each row's cross-entropy.

    Returns the weighted sum of the cross-entropies (of head and hidden it knows the gradients) and
    what each pass thinks is most likely, int64 [passes, N].
    """
    loss, guesses = _SoftTargetLoss.apply(head, hidden, weights, target)  # type: ignore[no-untyped-call]
    return loss, guesses


class _SoftTargetLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, hidden: Tensor, weights: Tensor, target: Target
    ) -> tuple[Tensor, Tensor]:
        matrix, rows = head.bfloat16(), hidden.bfloat16()
        of_head, of_rows = torch.zeros_like(head), torch.empty_like(rows)
        guesses = torch.empty(rows.shape[:2], dtype=torch.int64)
        loss = 0.0
        for begin in range(0, rows.shape[1], _CHUNK):
            part = slice(begin, begin + _CHUNK)
            own = rows[:, part]
            logits = (own.flatten(0, 1) @ matrix.t()).view(*own.shape[:2], -1)
            guesses[:, part] = logits.argmax(-1)
            log_probs = torch.log_softmax(logits, -1, torch.float32)
            wanted = _distribution(target, part)
            weight = weights[:, part, None]
            loss -= float((torch.einsum("pnv,nv->pn", log_probs, wanted) * weights[:, part]).sum())
            slope = log_probs.exp_().sub_(wanted).mul_(weight).bfloat16().flatten(0, 1)
            of_rows[:, part] = (slope @ matrix).view(own.shape)
            of_head += slope.t() @ own.flatten(0, 1)
        ctx.save_for_backward(of_head, of_rows)
        ctx.mark_non_differentiable(guesses)
        return head.new_tensor(loss), guesses

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        of_head, of_rows = ctx.saved_tensors
        return of_head * slopes[0], of_rows.float() * slopes[0], None, None


def _distribution(target: Target, part: slice) -> Tensor:
    logits = (target.final[part] @ target.rows.t()).float()
    if target.softcap is not None:
        logits = torch.tanh(logits / target.softcap) * target.softcap
    return torch.softmax(logits, -1)
