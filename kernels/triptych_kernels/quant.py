"""Quantised matrices: groups along K of small integers on an affine grid.

Pure functions in plain torch. Whatever is stored, 4-bit or 8-bit, from GGUF or quantised here, is
one `Affine`; kernels pack it as they like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BITS = (4, 8)
GROUPS = (32, 64, 128)

# Weights worked on at a time: intermediate results stay in cache, and ops of this size run on one
# thread: meeting another one for each of them costs more, above all on a machine that is in use.
_AT_ONCE = (1 << 15) - 1
_MAX_HALF = 65504.0
_MAX_SCALE_8 = 511.75  # −128 × this is still a float16
_ONE_A_STEP = 1.5 * 2**23  # float32 around it are the integers
# How many steps of the grid the range of a group may span: whole numbers find the grid of weights
# that were quantised before; beyond 15 the outermost weights are clipped, which large groups like.
_SPANS = (15.0, 14.0, 13.0, 12.0, 16.0, 17.0, 18.5)


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix [N, K]: w[n, k] = scale[n, k // group] × q[n, k] + low[n, k // group]."""

    q: Tensor  # uint8 [N, K], one value a byte, < 2 ** bits
    scale: Tensor  # float16 [N, ceil(K / group)]
    low: Tensor  # float16 [N, ceil(K / group)]
    bits: int  # 4 | 8
    group: int  # 32 | 64 | 128; the last group of a row may be short

    @property
    def shape(self) -> tuple[int, int]:
        """N, K."""
        rows, columns = self.q.shape
        return rows, columns

    @property
    def packed_bits(self) -> int:
        """Size once packed: weights at `bits` each, scales and lows at 16."""
        return self.bits * self.q.numel() + 32 * self.scale.numel()


def quantise(weight: Tensor, bits: int, group: int) -> Affine:
    """weight [N, K] of any floating dtype, onto the grids of smallest squared error found.

    4 bit: any scale and low. 8 bit: symmetric, low = −128 × scale, as GGUF's Q8_0. What float16
    scales cannot reach is clipped (weights beyond ±65,000) or becomes zero (groups below 1e-8).
    Raises ValueError when a weight is not finite.
    """
    assert bits in BITS and group in GROUPS, f"no {bits}-bit grid in groups of {group}"
    rows, columns = weight.shape
    q = torch.empty(rows, columns, dtype=torch.uint8)
    scale = torch.empty(rows, -(-columns // group), dtype=torch.float16)
    low = torch.empty_like(scale)
    fit = _fit_4 if bits == 4 else _fit_8
    for at, to in _row_chunks(rows, columns):
        exact = weight[at:to].float()
        if not exact.isfinite().all():
            raise ValueError("weights are not finite numbers")
        done = 0
        for values, target in zip(_grouped(exact, group), _grouped(q[at:to], group), strict=True):
            groups = slice(done, done + values.shape[1])
            target.copy_(fit(values, scale[at:to, groups, None], low[at:to, groups, None]))
            done = groups.stop
    return Affine(q, scale, low, bits, group)


def dequantise(affine: Affine, out: Tensor | None = None) -> Tensor:
    """float32 [N, K], or written into `out` [N, K] of any floating dtype."""
    out = torch.empty(affine.shape) if out is None else out
    return on_grid(affine.q, affine.scale, affine.low, affine.group, out)


def on_grid(q: Tensor, scale: Tensor, low: Tensor, group: int, out: Tensor) -> Tensor:
    """scale × q + low into `out` [N, K]; scale and low [N, ceil(K / group)] of any floating dtype.

    Computed in float32. With float16 scales the product is exact: there is one rounding.
    """
    for at, to in _row_chunks(*q.shape):
        done = 0
        for values, target in zip(
            _grouped(q[at:to], group), _grouped(out[at:to], group), strict=True
        ):
            groups = slice(done, done + values.shape[1])
            done = groups.stop
            step, start = (x[at:to, groups, None].float() for x in (scale, low))
            target.copy_(values.float().mul_(step).add_(start))
    return out


def promote(affine: Affine, bits: int, group: int) -> Affine:
    """The same weights with wider values or in smaller groups; exact."""
    assert bits >= affine.bits and affine.group % group == 0, "only finer formats hold the same"
    if group == affine.group:
        return Affine(affine.q, affine.scale, affine.low, bits, group)
    groups = -(-affine.q.shape[1] // group)
    scale, low = (
        per_group.repeat_interleave(affine.group // group, dim=1)[:, :groups].contiguous()
        for per_group in (affine.scale, affine.low)
    )
    return Affine(affine.q, scale, low, bits, group)


def join(parts: Sequence[Affine]) -> Affine:
    """Matrices of the same K one below the other, in the finest format among them; exact."""
    bits, group = max(part.bits for part in parts), min(part.group for part in parts)
    finest = [promote(part, bits, group) for part in parts]
    if len(finest) == 1:
        return finest[0]
    return Affine(
        torch.cat([part.q for part in finest]),
        torch.cat([part.scale for part in finest]),
        torch.cat([part.low for part in finest]),
        bits,
        group,
    )


def relative_error(weight: Tensor, affine: Affine) -> float:
    """Root mean square of the difference over that of the weights; 0 where all weights are zero."""
    wrong = total = 0.0
    for at, to in _row_chunks(*affine.shape):
        rows = Affine(
            affine.q[at:to], affine.scale[at:to], affine.low[at:to], affine.bits, affine.group
        )
        exact = weight[at:to].float()
        total += float(exact.square().sum(dtype=torch.float64))
        wrong += float(dequantise(rows).sub_(exact).square_().sum(dtype=torch.float64))
    return (wrong / total) ** 0.5 if total else 0.0


def _fit_8(values: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """values [R, G, g] → q; fills scale and low [R, G, 1]."""
    largest = values.abs().amax(-1, keepdim=True)
    step = _to_half((largest / 127).clamp_(max=_MAX_SCALE_8))
    scale.copy_(step)
    low.copy_(step * -128)
    return _steps(values, scale.float(), low.float(), 255)


def _fit_4(values: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """values [R, G, g] → q; fills scale and low [R, G, 1]."""
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
    unit = (x - middle).mul_(torch.where(half > 0, 1 / half, 0))  # -1 … 1
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


def _grouped(x: Tensor, group: int) -> Iterator[Tensor]:
    """Views of [N, K]: whole groups [N, G, group], then what is left [N, 1, K % group]."""
    whole = x.shape[1] // group * group
    if whole:
        yield x[:, :whole].view(x.shape[0], -1, group)
    if whole < x.shape[1]:
        yield x[:, None, whole:]


def _row_chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    size = max(1, _AT_ONCE // max(columns, 1))
    for at in range(0, rows, size):
        yield at, min(at + size, rows)
