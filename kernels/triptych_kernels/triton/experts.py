"""Mixtures of experts: rows sorted by expert, one matrix product per tile of an expert's rows,
answers added up in ascending expert id.

A tile has a fixed size whatever the batch is, and K is walked in ascending tiles with one float32
sum per result: so a row's bits depend on that row and its experts alone. 64 rows fill a warp
group's product on Hopper, and cost no more than fewer where weights are what is waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import JITFunction

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION, dot
from triptych_kernels.triton.dense_linear import DEPTH_OF_FLOAT32
from triptych_kernels.triton.gates import GATES, Gate, gated
from triptych_kernels.triton.rounding import narrow

ROWS = 64  # of a tile; part of the numerics contract, like the other two
COLUMNS = 64
DEPTH = 64
_COMBINED = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the cells of M rows, k each, lie once they are sorted by expert. Tiles hold rows of one
    expert; they are as many as could be needed, so nothing waits for the device.
    """

    cells: Tensor  # int32 [tiles · ROWS]: row · k + place; −1: none
    experts: Tensor  # int32 [tiles]; −1: an empty tile


def plan_cells(ids: Tensor, num_experts: int) -> Plan:
    """ids int32 [M, k] of experts → their cells by (expert, row)."""
    flat = ids.flatten().long()
    ones = torch.ones_like(flat)
    counts = flat.new_zeros(num_experts).scatter_add_(0, flat, ones)
    padded = (counts + ROWS - 1) // ROWS * ROWS
    ends = padded.cumsum(0)
    order = flat.argsort(stable=True)
    sorted_experts = flat[order]
    before = counts.cumsum(0) - counts
    places = torch.arange(len(flat), device=ids.device) - before[sorted_experts]
    places += (ends - padded)[sorted_experts]
    tiles = len(flat) // ROWS + min(num_experts, len(flat))
    cells = ids.new_full((tiles * ROWS,), -1)
    cells[places] = order.to(ids.dtype)
    firsts = torch.arange(tiles, device=ids.device) * ROWS
    experts = torch.searchsorted(ends, firsts, right=True)
    return Plan(cells, torch.where(experts < num_experts, experts, -1).to(ids.dtype))


def run_experts(
    x: Tensor,
    plan: Plan,
    gate_up: Tensor,
    down: Tensor,
    *,
    num_cells: int,
    gate: Gate = "silu",
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Every cell's answer, [num_cells, H] in the rows' order.

    x [M, H]; gate_up [E, 2·I, H], gate above up; down [E, H, I]; biases float32 [E, 2·I] and
    [E, H], both or none; num_cells = M · k.
    """
    assert (gate_up_bias is None) == (down_bias is None), "both have biases, or none has"
    depth = DEPTH_OF_FLOAT32 if x.dtype == torch.float32 else DEPTH
    assert x.stride(1) == gate_up.stride(2) == down.stride(2) == 1, "rows are contiguous"
    size, inner = down.shape[1:]
    tiles = len(plan.experts)
    hidden = torch.empty(tiles * ROWS, inner, dtype=x.dtype, device=x.device)
    _gate_up[(tiles, triton.cdiv(inner, COLUMNS))](
        x,
        gate_up,
        gate_up_bias,
        plan.cells,
        plan.experts,
        hidden,
        x.stride(0),
        gate_up.stride(0),
        gate_up.stride(1),
        num_cells // x.shape[0],
        inner,
        size,
        GATE=GATES[gate],
        BIAS=gate_up_bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=depth,
        num_warps=4,
        num_stages=3,
        **NO_FUSION,
    )
    answers = torch.empty(num_cells, size, dtype=out_dtype or x.dtype, device=x.device)
    _down[(tiles, triton.cdiv(size, COLUMNS))](
        hidden,
        down,
        down_bias,
        plan.cells,
        plan.experts,
        answers,
        down.stride(0),
        down.stride(1),
        size,
        inner,
        BIAS=down_bias is not None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        DEPTH=depth,
        num_warps=4,
        num_stages=3,
        **NO_FUSION,
    )
    return answers


def combine(
    cells: Tensor, weights: Tensor | None, shared: Tensor | None = None, scale: float = 1.0,
    into: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Σ_j weights[m, j] · cells[m · k + j], in the order of j, + shared[m] → float32 [M, H]; equal
    to the bit to `triptych_kernels.combine`.

    into float32 [M, H]: what is returned; `scale` times the sum is added to what it holds.
    """
    k = 1 if weights is None else weights.shape[1]
    rows, size = cells.shape[0] // k, cells.shape[1]
    out = cells.new_empty(rows, size, dtype=torch.float32) if into is None else into
    _combine[(rows, triton.cdiv(size, _COMBINED))](
        cells,
        cells if weights is None else weights,
        cells if shared is None else shared,
        out,
        scale,
        k,
        size,
        WEIGHTED=weights is not None,
        SHARED=shared is not None,
        ADD=into is not None,
        TILE=_COMBINED,
        **NO_FUSION,
    )
    return out


@triton.jit
def _gate_up(x, weights, bias, cells, experts, out, x_stride, expert_stride, row_stride, k, inner,
             size, GATE: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr,
             COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert < 0:
        return
    at = tile * ROWS + tl.arange(0, ROWS)
    cell = tl.load(cells + at)
    row = tl.where(cell < 0, 0, cell // k).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column[None, :] < inner
    depth = tl.arange(0, DEPTH)
    from_x = x + row[:, None] * x_stride
    from_gate = weights + expert * expert_stride + column[None, :].to(tl.int64) * row_stride
    from_up = from_gate + inner.to(tl.int64) * row_stride
    gate = tl.zeros((ROWS, COLUMNS), tl.float32)
    up = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, size, DEPTH):
        d = first + depth
        a = tl.load(from_x + d[None, :], mask=(cell[:, None] >= 0) & (d[None, :] < size), other=0.0)
        b = tl.load(from_gate + d[:, None], mask=inside & (d[:, None] < size), other=0.0)
        c = tl.load(from_up + d[:, None], mask=inside & (d[:, None] < size), other=0.0)
        gate += dot(a, b)
        up += dot(a, c)
    if BIAS:
        from_bias = bias + expert * 2 * inner + column
        gate += tl.load(from_bias, mask=column < inner, other=0.0)[None, :]
        up += tl.load(from_bias + inner, mask=column < inner, other=0.0)[None, :]
    value = narrow(gated(gate, up, GATE), out.dtype.element_ty)
    to = out + at[:, None].to(tl.int64) * inner + column[None, :]
    tl.store(to, value, mask=inside)


@triton.jit
def _down(hidden, weights, bias, cells, experts, out, expert_stride, row_stride, size, inner,
          BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
          DEPTH: tl.constexpr):  # fmt: skip
    tile = tl.program_id(0)
    expert = tl.load(experts + tile).to(tl.int64)
    if expert < 0:
        return
    at = tile * ROWS + tl.arange(0, ROWS)
    cell = tl.load(cells + at)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column[None, :] < size
    depth = tl.arange(0, DEPTH)
    from_hidden = hidden + at[:, None].to(tl.int64) * inner
    from_weights = weights + expert * expert_stride + column[None, :].to(tl.int64) * row_stride
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, inner, DEPTH):
        d = first + depth
        a = tl.load(from_hidden + d[None, :], mask=d[None, :] < inner, other=0.0)
        b = tl.load(from_weights + d[:, None], mask=inside & (d[:, None] < inner), other=0.0)
        sums += dot(a, b)
    if BIAS:
        sums += tl.load(bias + expert * size + column, mask=column < size, other=0.0)[None, :]
    to = out + cell[:, None].to(tl.int64) * size + column[None, :]
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=inside & (cell[:, None] >= 0))


@triton.jit
def _combine(cells, weights, shared, out, scale, k, size, WEIGHTED: tl.constexpr,
             SHARED: tl.constexpr, ADD: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < size
    if WEIGHTED:
        total = tl.zeros((TILE,), tl.float32)
        for j in range(k):
            cell = tl.load(cells + (row * k + j) * size + at, mask=inside, other=0.0)
            weight = tl.load(weights + row * k + j) + tl.zeros((TILE,), tl.float32)
            total = tl.fma(weight, cell.to(tl.float32), total)
    else:
        total = tl.load(cells + row * size + at, mask=inside, other=0.0).to(tl.float32)
    if SHARED:
        total = total + tl.load(shared + row * size + at, mask=inside, other=0.0)
    if ADD:
        total = tl.load(out + row * size + at, mask=inside, other=0.0) + total * scale
    tl.store(out + row * size + at, total, mask=inside)


_TILES = {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH}
_GATED: tuple[tuple[bool, Gate], ...] = ((False, "silu"), (True, "clamped_swiglu"))


def _product(name: str, kernel: JITFunction, copies: int, bias: bool, gate: Gate) -> AotCase:
    """kernel: `_gate_up` or `_down`."""
    types = {
        **dict.fromkeys(("x", "hidden", "weights", "out"), "*bf16"),
        **dict.fromkeys(("cells", "experts"), "*i32"),
        **dict.fromkeys(("x_stride", "row_stride", "k", "inner", "size"), "i32"),
        "expert_stride": "i64",
        "bias": "*fp32",
    }
    constants: dict[str, object] = {**_TILES, "GATE": GATES[gate], "BIAS": bias}
    if not bias:
        constants["bias"] = None
    names = kernel.arg_names
    aligned = ("x", "hidden", "weights", "out", "x_stride", "expert_stride", "row_stride")
    return AotCase(
        f"experts/{name}{'+bias' if bias else ''}/bf16",
        kernel,
        {of: types[of] for of in names if of in types and of not in constants},
        {of: value for of, value in constants.items() if of in names},
        num_stages=3,
        aligned=tuple(of for of in (*aligned, "inner", "size") if of in names),
        async_copies=copies,
    )


AOT_CASES = (
    *(_product("gate_up", _gate_up, 36, bias, gate) for bias, gate in _GATED),
    *(_product("down", _down, 24, bias, gate) for bias, gate in _GATED),
    AotCase(
        "experts/combine/bf16",
        _combine,
        {
            **dict.fromkeys(("weights", "shared", "out"), "*fp32"),
            **dict.fromkeys(("k", "size"), "i32"),
            "cells": "*bf16",
            "scale": "fp32",
        },
        {"WEIGHTED": True, "SHARED": True, "ADD": True, "TILE": _COMBINED},
        aligned=("cells", "shared", "out", "size"),
        mma=False,
    ),
)
