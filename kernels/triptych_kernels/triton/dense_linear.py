"""Linear layers over dense weights, in tiles that never depend on the batch.

A library's product (cuBLAS) chooses its tiles, and into how many parts K is split, by the number of
rows: a row's bits then depend on how many others are in the batch. Here tiles have one size and K
is walked in ascending order, as in packed_linear.py and experts.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION, dot
from triptych_kernels.triton.rounding import narrow

ROWS = 64  # of a tile; part of the numerics contract, like the other two
COLUMNS = 64
DEPTH = 64
# Without tensor cores, as float32 proper: 64 spill on sm_80.
DEPTH_OF_FLOAT32 = 32


def linear_dense(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """x [M, K] @ weightᵀ [N, K] of the same type → [M, N] of it or of `out_dtype`; bias float32
    [N]. Sums are float32.
    """
    rows, depth = x.shape
    columns = weight.shape[0]
    assert weight.shape[1] == depth and weight.dtype == x.dtype, "rows and weights of K numbers"
    assert x.stride(1) == weight.stride(1) == 1, "rows are contiguous"
    out = torch.empty(rows, columns, dtype=out_dtype or x.dtype, device=x.device)
    _linear_dense[(triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))](
        x,
        weight,
        bias,
        out,
        x.stride(0),
        weight.stride(0),
        rows,
        columns,
        depth,
        BIAS=bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=DEPTH_OF_FLOAT32 if x.dtype == torch.float32 else DEPTH,
        num_warps=4,
        num_stages=3,
        **NO_FUSION,
    )
    return out


@triton.jit(do_not_specialize=["rows"])  # one code for every batch
def _linear_dense(x, weight, bias, out, x_stride, weight_stride, rows, columns, depth,
                  BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                  DEPTH: tl.constexpr):  # fmt: skip
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, DEPTH)
    # Behind the last one the last one is read; it is not stored.
    of = tl.minimum(column, columns - 1).to(tl.int64)
    from_x = x + row[:, None].to(tl.int64) * x_stride + at[None, :]
    from_weight = weight + of[None, :] * weight_stride + at[:, None]
    exist = (row < rows)[:, None]
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, depth, DEPTH):
        a = tl.load(from_x + first, mask=exist & (at[None, :] < depth - first), other=0.0)
        b = tl.load(from_weight + first, mask=at[:, None] < depth - first, other=0.0)
        sums += dot(a, b)
    if BIAS:
        sums += tl.load(bias + of)[None, :]
    to = out + row[:, None].to(tl.int64) * columns + column[None, :]
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=exist & (column[None, :] < columns))


AOT_CASES = tuple(
    AotCase(
        f"linear/dense/{dtype}",
        _linear_dense,
        {
            **dict.fromkeys(("x", "weight", "out"), f"*{dtype}"),
            **dict.fromkeys(("x_stride", "weight_stride", "rows", "columns", "depth"), "i32"),
            "bias": "*fp32",
        },
        {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": depth, "BIAS": True},
        num_stages=3,
        aligned=("x", "weight", "out", "x_stride", "weight_stride", "columns", "depth"),
        mma=dtype == "bf16",
        async_copies=24,
    )
    for dtype, depth in (("bf16", DEPTH), ("fp32", DEPTH_OF_FLOAT32))
)
