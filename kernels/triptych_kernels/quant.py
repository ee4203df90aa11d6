"""Quantised matrices: groups along K of small integers on an affine grid.

Pure functions in plain torch. Whatever is stored, 4-bit or 8-bit, from GGUF or quantised here, is
one `Affine`; kernels pack it as they like.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych_kernels.grid_search import fit_4, fit_8

BITS = (4, 8)
GROUPS = (32, 64, 128)

# Weights worked on at a time: intermediate results stay in cache, and ops of this size run on one
# thread: meeting another one for each of them costs more, above all on a machine that is in use.
_AT_ONCE = (1 << 15) - 1


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
    fit = fit_4 if bits == 4 else fit_8
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
