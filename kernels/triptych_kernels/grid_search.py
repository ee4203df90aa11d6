"""Finds the grid on which the weights of a group are best kept, for many groups at once.

Written for tensors that stay in cache (`quant` cuts them): every op is one pass on one thread.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30  # far below the smallest float16; 1 / this is still a float32
_MAX_HALF = 65504.0
_MAX_SCALE_8 = 511.75  # −128 × this is still a float16
_ONE_A_STEP = 1.5 * 2**23  # float32 around it are the integers
# How many steps of the grid the range of a group may span: whole numbers find the grid of weights
# that were quantised before; beyond 15 the outermost weights are clipped, which large groups like.
_SPANS = (15.0, 14.0, 13.0, 12.0, 16.0, 17.0, 18.5)


def fit_8(values: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """Symmetric: values [R, G, g] float32 → q; fills scale and low [R, G, 1] float16."""
    largest = values.abs().amax(-1, keepdim=True)
    step = _to_half((largest / 127).clamp_(max=_MAX_SCALE_8))
    scale.copy_(step)
    low.copy_(step * -128)
    return _steps(values, scale.float(), low.float(), 255)


def fit_4(values: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """Any scale and low: values [R, G, g] float32 → q; fills scale and low [R, G, 1] float16."""
    # The group comes first: reductions then run over whole vectors.
    x = values.movedim(-1, 0).contiguous()
    step, start = _best_grid(x)
    scale.copy_(_to_half(step.clamp_(max=_MAX_HALF))[..., None])
    low.copy_(start.clamp_(-_MAX_HALF, _MAX_HALF)[..., None])
    return _steps(x, scale[..., 0].float(), low[..., 0].float(), 15).movedim(0, -1)


def _best_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and low of the grid with 16 values that fits best. x [g, ...] → two [...]."""
    bottom, top = x.amin(0), x.amax(0)
    middle, half = bottom / 2 + top / 2, top / 2 - bottom / 2
    unit = (x - middle).mul_(torch.where(half > _TINY, 1 / half, 0))  # -1 … 1
    mean = unit.mean(0)
    centred = unit - mean
    span = _best_span(unit, centred)
    q = _round(unit * (span / 2) + span.clamp(max=15) / 2).clamp_(0, 15)
    scale, q_mean = _least_squares(q, centred)
    return scale * half, (mean - scale * q_mean) * half + middle


def _best_span(unit: Tensor, centred: Tensor) -> Tensor:
    """Over how many steps to spread the range of each group. unit, centred [g, ...] → [...].

    Each span gives integers, and these a least-squares fit; that which explains most of the
    variance leaves the smallest error.
    """
    best, chosen = torch.full_like(unit[0], -1), torch.full_like(unit[0], _SPANS[0])
    for span in _SPANS:
        q = _round(unit * (span / 2) + min(span, 15.0) / 2)
        if span > 15:
            q.clamp_(0, 15)
        total = q.sum(0)
        both = (q * centred).sum(0)
        variance = q.square_().sum(0).addcmul_(total, total, value=-1 / len(q))
        explained = both.square_().div_(variance)  # NaN, never better, where all weights are equal
        chosen = torch.where(explained > best, span, chosen)
        best = torch.fmax(best, explained)
    return chosen


def _least_squares(q: Tensor, centred: Tensor) -> tuple[Tensor, Tensor]:
    """Scale for which scale × q + constant is nearest, and the mean of q. [g, ...] → two [...]."""
    mean = q.mean(0)
    centred_q = q - mean
    variance = centred_q.square().sum(0)
    scale = (centred_q * centred).sum(0) / variance
    return torch.where(variance > 0, scale, 0), mean


def _steps(x: Tensor, scale: Tensor, low: Tensor, most: int) -> Tensor:
    """The nearest value of each weight on a grid, float32."""
    inverse = torch.where(scale > 0, 1 / scale, 0)
    return _round(torch.sub(x, low).mul_(inverse)).clamp_(0, most)


def _round(x: Tensor) -> Tensor:
    """In place, to the nearest integer. |x| < 2²²; torch's own starts threads for small tensors."""
    return x.add_(_ONE_A_STEP).sub_(_ONE_A_STEP)


def _to_half(scale: Tensor) -> Tensor:
    """float16; the smallest ones are so coarse that only rounding up clips no weights."""
    nearest = scale.half()
    above = (nearest.view(torch.int16) + 1).view(torch.float16)
    return torch.where(nearest.float() < scale * (1 - 1 / 256), above, nearest)
