"""Linear layers over weights of 4 or 8 bits, unpacked on their way to the product.

* `linear_affine`: an `Affine` (scale · q + low by group), rounded to the type of the rows, as the
  CPU's kernels round it. The product is turned around, weights × rowsᵀ: what was unpacked stays in
  registers, and rows are its narrow side.
* `linear_fp8`: e4m3 on both sides with scales for blocks of 128 × 128 weights and of 128 numbers of
  a row (DeepSeek-V3, arXiv 2412.19437, section 3.3). Each block of K is multiplied by its scales in
  float32, so tensor cores never add up more than 128 products by themselves.

Tiles have fixed sizes and K is walked in ascending order: a row's bits depend on that row alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.fp8 import FP8_BLOCK, Fp8Weight
from triptych_kernels.quant import Affine
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION, dot
from triptych_kernels.triton.rounding import narrow

ROWS = 64
COLUMNS = 64
HALF = 32  # of a block of K: one scale of the finest group
DEPTH = 2 * HALF
FP8_COLUMNS = FP8_BLOCK
FP8_DEPTH = FP8_BLOCK


@dataclass(frozen=True, slots=True)
class PackedAffine:
    """An `Affine` [N, K] as the kernel reads it. Of 4 bits a byte holds two weights that lie 32
    apart in K, so that both halves of a block come out side by side; K is filled up to whole
    blocks.
    """

    q: Tensor  # uint8 [N, K / 2] or [N, K]
    scale: Tensor  # float16 [N, groups]
    low: Tensor  # float16 [N, groups]
    bits: int
    group: int
    in_features: int


Packed = PackedAffine | Fp8Weight


def pack_affine(weight: Affine) -> PackedAffine:
    rows, columns = weight.shape
    q = torch.nn.functional.pad(weight.q, (0, -columns % DEPTH))
    if weight.bits == 4:
        blocks = q.view(rows, -1, 2, HALF)
        q = (blocks[:, :, 0] | blocks[:, :, 1] << 4).flatten(1)
    scale, low = weight.scale.contiguous(), weight.low.contiguous()
    return PackedAffine(q.contiguous(), scale, low, weight.bits, weight.group, columns)


def linear_affine(
    x: Tensor,
    weight: PackedAffine,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [M, K] of a floating type → [M, N] of it or of `out_dtype`; bias float32 [N]."""
    assert x.shape[1] == weight.in_features and x.stride(1) == 1, "rows of K numbers, contiguous"
    rows, columns = x.shape[0], weight.q.shape[0]
    out = torch.empty(rows, columns, dtype=out_dtype or x.dtype, device=x.device)
    _linear_affine[(triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))](
        weight.q,
        weight.scale,
        weight.low,
        x,
        weight.scale if bias is None else bias,
        out,
        x.stride(0),
        weight.q.stride(0),
        weight.scale.stride(0),
        rows,
        columns,
        weight.in_features,
        BITS=weight.bits,
        GROUP=weight.group,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        HALF=HALF,
        num_warps=4,
        num_stages=3,
        **NO_FUSION,
    )
    return out


def linear_fp8(
    x: Tensor, x_scale: Tensor, weight: Fp8Weight, bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:  # fmt: skip
    """x float8_e4m3fn [M, K] with x_scale float32 [M, ceil(K / 128)], as `pack_rows` makes them, →
    [M, N] of `out_dtype`; bias float32 [N]. For sm_89 and later.
    """
    rows, depth = x.shape
    columns = weight.q.shape[0]
    assert weight.q.shape[1] == depth and x.is_contiguous(), "rows of K numbers, contiguous"
    out = torch.empty(rows, columns, dtype=out_dtype, device=x.device)
    _linear_fp8[(triton.cdiv(columns, FP8_COLUMNS), triton.cdiv(rows, ROWS))](
        x,
        x_scale,
        weight.q,
        weight.scale,
        x_scale if bias is None else bias,
        out,
        weight.scale.stride(0),
        rows,
        columns,
        depth,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=FP8_COLUMNS,
        DEPTH=FP8_DEPTH,
        num_warps=4,
        num_stages=3,
        **NO_FUSION,
    )
    return out


@triton.jit
def _on_grid(q, scale, low, at, dtype: tl.constexpr):
    """q [COLUMNS, HALF] of one group → weights of dtype: the product is exact."""
    step = tl.load(scale + at)[:, None].to(tl.float32)
    return narrow(q.to(tl.float32) * step + tl.load(low + at)[:, None].to(tl.float32), dtype)


@triton.jit
def affine_product(q, scale, low, from_x, of, real, q_stride, group_stride, depth,
                   BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
                   COLUMNS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    """of int64 [COLUMNS]: rows of the matrix. from_x [1, ROWS]: where rows begin; real [ROWS]: not
    read where False. → float32 [COLUMNS, ROWS].
    """
    half = tl.arange(0, HALF)
    from_q = q + of[:, None] * q_stride + half[None, :]
    from_x += half[:, None]
    last_group = (depth - 1) // GROUP
    sums = tl.zeros((COLUMNS, ROWS), tl.float32)
    for first in range(0, depth, 2 * HALF):
        if BITS == 4:
            both = tl.load(from_q + first // 2)
            front, back = both & 15, both >> 4
        else:
            front, back = tl.load(from_q + first), tl.load(from_q + first + HALF)
        group = of * group_stride + first // GROUP
        next_group = of * group_stride + tl.minimum((first + HALF) // GROUP, last_group)
        inside = (half[:, None] < depth - first) & real[None, :]
        inside_back = (half[:, None] < depth - first - HALF) & real[None, :]
        x_front = tl.load(from_x + first, mask=inside, other=0.0)
        x_back = tl.load(from_x + first + HALF, mask=inside_back, other=0.0)
        dtype = from_x.dtype.element_ty
        sums += dot(_on_grid(front, scale, low, group, dtype), x_front)
        sums += dot(_on_grid(back, scale, low, next_group, dtype), x_back)
    return sums


@triton.jit(do_not_specialize=["rows"])  # one code for every batch
def _linear_affine(q, scale, low, x, bias, out, x_stride, q_stride, group_stride, rows, columns,
                   depth, BITS: tl.constexpr, GROUP: tl.constexpr, BIAS: tl.constexpr,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    # Behind the last one the last one is read; it is not stored.
    of = tl.minimum(column, columns - 1).to(tl.int64)
    from_x = x + row[None, :].to(tl.int64) * x_stride
    sums = affine_product(
        q, scale, low, from_x, of, row < rows, q_stride, group_stride, depth,
        BITS, GROUP, ROWS, COLUMNS, HALF,
    )  # fmt: skip
    if BIAS:
        sums += tl.load(bias + of)[:, None]
    to = out + row[None, :].to(tl.int64) * columns + column[:, None]
    stored = (column[:, None] < columns) & (row[None, :] < rows)
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=stored)


@triton.jit
def fp8_product(x, x_scale, q, scales, of_row, of, depth, ROWS: tl.constexpr,
                COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """of_row int64 [ROWS]: rows of x; of int64 [COLUMNS]: rows of the matrix, of one block, whose
    scales begin at `scales`. → float32 [ROWS, COLUMNS].
    """
    at = tl.arange(0, DEPTH)
    from_x = x + of_row[:, None] * depth + at[None, :]
    from_q = q + of[None, :] * depth + at[:, None]
    blocks = tl.cdiv(depth, DEPTH)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(blocks):
        left = depth - block * DEPTH
        a = tl.load(from_x + block * DEPTH, mask=at[None, :] < left, other=0.0)
        b = tl.load(from_q + block * DEPTH, mask=at[:, None] < left, other=0.0)
        of_x = tl.load(x_scale + of_row * blocks + block)
        of_q = tl.load(scales + block)
        sums += dot(a, b) * (of_x * of_q)[:, None]
    return sums


@triton.jit(do_not_specialize=["rows"])  # one code for every batch
def _linear_fp8(x, x_scale, q, scale, bias, out, scale_stride, rows, columns, depth,
                BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                DEPTH: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    of = tl.minimum(column, columns - 1).to(tl.int64)
    of_row = tl.minimum(row, rows - 1).to(tl.int64)
    scales = scale + tl.program_id(0) * scale_stride
    sums = fp8_product(x, x_scale, q, scales, of_row, of, depth, ROWS, COLUMNS, DEPTH)
    if BIAS:
        sums += tl.load(bias + of)[None, :]
    to = out + row[:, None].to(tl.int64) * columns + column[None, :]
    stored = (column[None, :] < columns) & (row[:, None] < rows)
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=stored)


_TILES = {"ROWS": ROWS, "BIAS": False}

AOT_CASES = (
    *(
        AotCase(
            f"linear/int{bits}/bf16",
            _linear_affine,
            {
                **dict.fromkeys(("scale", "low"), "*fp16"),
                **dict.fromkeys(("x", "out"), "*bf16"),
                **dict.fromkeys(("x_stride", "q_stride", "group_stride"), "i32"),
                **dict.fromkeys(("rows", "columns", "depth"), "i32"),
                "q": "*u8",
                "bias": "*fp32",
            },
            {**_TILES, "BITS": bits, "GROUP": 64, "COLUMNS": COLUMNS, "HALF": HALF},
            num_stages=3,
            aligned=("q", "x", "out", "x_stride", "q_stride", "columns", "depth"),
            async_copies=15,
        )
        for bits in (4, 8)
    ),
    AotCase(
        "linear/fp8/bf16",
        _linear_fp8,
        {
            **dict.fromkeys(("x", "q"), "*fp8e4nv"),
            **dict.fromkeys(("x_scale", "scale", "bias"), "*fp32"),
            **dict.fromkeys(("scale_stride", "rows", "columns", "depth"), "i32"),
            "out": "*bf16",
        },
        {**_TILES, "COLUMNS": FP8_COLUMNS, "DEPTH": FP8_DEPTH},
        num_stages=3,
        aligned=("x", "q", "out", "columns", "depth"),
        async_copies=36,
        least=89,
    ),
)
