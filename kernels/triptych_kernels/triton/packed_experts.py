"""Mixtures of experts over weights of 4 or 8 bits or in fp8: the cells of experts.py, the products
of packed_linear.py. A cell has the bits that its row would get from its expert's matrices alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.experts import Plan
from triptych_kernels.triton.gates import Gate, gate_rows
from triptych_kernels.triton.packed_linear import (
    COLUMNS,
    FP8_COLUMNS,
    FP8_DEPTH,
    HALF,
    ROWS,
    Packed,
    PackedAffine,
    affine_product,
    fp8_product,
)
from triptych_kernels.triton.rounding import narrow
from triptych_kernels.triton.wire_rows import pack_rows


def run_packed_experts(
    x: Tensor,
    plan: Plan,
    gate_up: Packed,
    down: Packed,
    *,
    num_cells: int,
    gate: Gate = "silu",
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """As `experts.run_experts`. Both matrices are packed alike, and their tensors have a dimension
    more, the first: the experts'.
    """
    k, padded = num_cells // len(x), len(plan.cells)
    size, inner = down.q.shape[1], gate_up.q.shape[1]
    both = torch.empty(padded, inner, dtype=torch.float32, device=x.device)
    _multiply(x, plan, gate_up, gate_up_bias, both, k=k, cells_out=False)
    hidden = gate_rows(both, gate, x.dtype)  # of empty tiles, too: nobody reads them
    answers = torch.empty(num_cells, size, dtype=out_dtype or x.dtype, device=x.device)
    _multiply(hidden, plan, down, down_bias, answers, k=k, cells_out=True)
    return answers


def _multiply(
    x: Tensor, plan: Plan, weight: Packed, bias: Tensor | None, out: Tensor, *, k: int,
    cells_out: bool,
) -> None:  # fmt: skip
    """From rows to the plan's places or, with `cells_out`, from those to cells."""
    columns = weight.q.shape[1]
    assert x.is_contiguous() and out.is_contiguous(), "rows are contiguous"
    options = {"BIAS": bias is not None, "CELLS_OUT": cells_out, "ROWS": ROWS, "num_warps": 4}
    options |= {"num_stages": 3, **NO_FUSION}
    if isinstance(weight, PackedAffine):
        _affine_cells[(len(plan.experts), triton.cdiv(columns, COLUMNS))](
            weight.q,
            weight.scale,
            weight.low,
            x,
            bias,
            plan.cells,
            plan.experts,
            out,
            *weight.q.stride()[:2],
            *weight.scale.stride()[:2],
            k,
            columns,
            weight.in_features,
            BITS=weight.bits,
            GROUP=weight.group,
            COLUMNS=COLUMNS,
            HALF=HALF,
            **options,
        )
        return
    every = torch.arange(len(x), dtype=torch.int32, device=x.device)
    rows, x_scale = pack_rows(x, every, "fp8")
    _fp8_cells[(len(plan.experts), triton.cdiv(columns, FP8_COLUMNS))](
        rows,
        x_scale,
        weight.q,
        weight.scale,
        bias,
        plan.cells,
        plan.experts,
        out,
        weight.q.stride(0),
        *weight.scale.stride()[:2],
        k,
        columns,
        weight.q.shape[2],
        COLUMNS=FP8_COLUMNS,
        DEPTH=FP8_DEPTH,
        **options,
    )


@triton.jit
def _places(cells, tile, k, CELLS_OUT: tl.constexpr, ROWS: tl.constexpr):
    """Rows of a tile: int64 where each is read and where it goes, and whether there is one."""
    at = tile * ROWS + tl.arange(0, ROWS)
    cell = tl.load(cells + at)
    real = cell >= 0
    at = at.to(tl.int64)
    if CELLS_OUT:
        return at, cell.to(tl.int64), real
    return tl.where(real, cell // k, 0).to(tl.int64), at, real


@triton.jit
def _affine_cells(q, scale, low, x, bias, cells, experts, out, expert_q, q_stride, expert_group,
                  group_stride, k, columns, depth, BITS: tl.constexpr, GROUP: tl.constexpr,
                  BIAS: tl.constexpr, CELLS_OUT: tl.constexpr, ROWS: tl.constexpr,
                  COLUMNS: tl.constexpr, HALF: tl.constexpr):  # fmt: skip
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert < 0:
        return
    row, place, real = _places(cells, tl.program_id(0), k, CELLS_OUT, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of = tl.minimum(column, columns - 1).to(tl.int64)
    groups = expert * expert_group
    sums = affine_product(
        q + expert * expert_q, scale + groups, low + groups, x + row[None, :] * depth, of, real,
        q_stride, group_stride, depth, BITS, GROUP, ROWS, COLUMNS, HALF,
    )  # fmt: skip
    if BIAS:
        sums += tl.load(bias + expert * columns + of)[:, None]
    to = out + place[None, :] * columns + column[:, None]
    stored = (column[:, None] < columns) & real[None, :]
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=stored)


@triton.jit
def _fp8_cells(x, x_scale, q, scale, bias, cells, experts, out, expert_q, expert_scale,
               scale_stride, k, columns, depth, BIAS: tl.constexpr, CELLS_OUT: tl.constexpr,
               ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    expert = tl.load(experts + tl.program_id(0)).to(tl.int64)
    if expert < 0:
        return
    row, place, real = _places(cells, tl.program_id(0), k, CELLS_OUT, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    of = tl.minimum(column, columns - 1).to(tl.int64)
    scales = scale + expert * expert_scale + tl.program_id(1) * scale_stride
    sums = fp8_product(
        x, x_scale, q + expert * expert_q, scales, row, of, depth, ROWS, COLUMNS, DEPTH
    )
    if BIAS:
        sums += tl.load(bias + expert * columns + of)[None, :]
    to = out + place[:, None] * columns + column[None, :]
    tl.store(
        to, narrow(sums, out.dtype.element_ty), mask=(column[None, :] < columns) & real[:, None]
    )


_TYPES = {
    **dict.fromkeys(("cells", "experts"), "*i32"),
    **dict.fromkeys(("q_stride", "group_stride", "scale_stride", "expert_group"), "i32"),
    **dict.fromkeys(("expert_scale", "k", "columns", "depth"), "i32"),
    "expert_q": "i64",
    "bias": "*fp32",
}

AOT_CASES = (
    *(
        AotCase(
            f"experts/int{bits}/{'down' if cells_out else 'gate_up'}/bf16",
            _affine_cells,
            {
                **{name: of for name, of in _TYPES.items() if name in _affine_cells.arg_names},
                **dict.fromkeys(("scale", "low"), "*fp16"),
                "q": "*u8",
                "x": "*bf16",
                "out": "*bf16" if cells_out else "*fp32",
            },
            {
                "BITS": bits,
                "GROUP": 64,
                "BIAS": True,
                "CELLS_OUT": cells_out,
                "ROWS": ROWS,
                "COLUMNS": COLUMNS,
                "HALF": HALF,
            },
            num_stages=3,
            aligned=("q", "x", "out", "expert_q", "q_stride", "columns", "depth"),
            async_copies=15,
        )
        for bits, cells_out in ((4, False), (8, True))
    ),
    AotCase(
        "experts/fp8/down/bf16",
        _fp8_cells,
        {
            **{name: of for name, of in _TYPES.items() if name in _fp8_cells.arg_names},
            **dict.fromkeys(("x", "q"), "*fp8e4nv"),
            **dict.fromkeys(("x_scale", "scale"), "*fp32"),
            "out": "*bf16",
        },
        {
            "BIAS": True,
            "CELLS_OUT": True,
            "ROWS": ROWS,
            "COLUMNS": FP8_COLUMNS,
            "DEPTH": FP8_DEPTH,
        },
        num_stages=3,
        aligned=("x", "q", "out", "expert_q", "columns", "depth"),
        async_copies=36,
        least=89,
    ),
)
