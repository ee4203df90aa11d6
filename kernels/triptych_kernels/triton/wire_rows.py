"""Rows on their way to experts and back: gathered and rounded in one pass, equal to the bit to
`triptych_kernels.wire_rows`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.rounding import from_e4m3, narrow, round_whole, to_e4m3
from triptych_kernels.wire_rows import FP8_BLOCK, RowType, empty_rows

_KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "fp8": 3}
_TILE = 1024
_INF = tl.constexpr(float("inf"))
_NAN = tl.constexpr(float("nan"))
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


def pack_rows(x: Tensor, rows: Tensor, row_type: RowType) -> tuple[Tensor, Tensor | None]:
    """Row rows[i] of x [M, H], of any floating type, as row i: [C, H] of `row_type`, and its
    scales.

    rows int32 [C]; −1: zeros.
    """
    count, size = len(rows), x.shape[1]
    packed, scales = empty_rows(torch.Size((count, size)), row_type, x.device)
    # A scale of a whole row needs all of it in one program; of a block, only that block.
    tile = triton.next_power_of_2(size) if row_type == "int8" else FP8_BLOCK
    tile = tile if row_type in ("int8", "fp8") else _TILE
    out = packed.view(torch.uint8) if row_type == "fp8" else packed
    _pack[(count, triton.cdiv(size, tile))](
        x,
        rows,
        out,
        out if scales is None else scales,
        x.stride(0),
        size,
        KIND=_KINDS[row_type],
        TILE=tile,
        **NO_FUSION,
    )
    return packed, scales


def unpack_rows(packed: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What the other side computes with: [M, H] of dtype."""
    kind = {torch.int8: 2, torch.float8_e4m3fn: 3}.get(packed.dtype, 0)
    count, size = packed.shape
    out = torch.empty(count, size, dtype=dtype, device=packed.device)
    tile = FP8_BLOCK if kind == 3 else _TILE
    _unpack[(count, triton.cdiv(size, tile))](
        packed.view(torch.uint8) if kind == 3 else packed,
        out if scales is None else scales,
        out,
        size,
        KIND=kind,
        TILE=tile,
        **NO_FUSION,
    )
    return out


@triton.jit
def _pack(x, rows, packed, scales, stride, size, KIND: tl.constexpr, TILE: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = part * TILE + tl.arange(0, TILE)
    row = tl.load(rows + number).to(tl.int64)
    inside = at < tl.where(row >= 0, size, 0)
    values = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    to = packed + number * size + at
    if KIND < 2:
        tl.store(to, narrow(values, packed.dtype.element_ty), mask=at < size)
    else:
        is_finite = tl.min((tl.abs(values) < _INF).to(tl.int32), 0) > 0
        most = 127.0 if KIND == 2 else 448.0
        largest = tl.maximum(tl.div_rn(tl.max(tl.abs(values), 0), most), _TINY)
        scale = tl.where(is_finite, largest, _NAN)
        tl.store(scales + number * tl.num_programs(1) + part, scale)
        steps = tl.div_rn(values, scale + tl.zeros((TILE,), tl.float32))
        if KIND == 2:
            whole = round_whole(tl.where(is_finite, steps, 0.0))
            tl.store(to, whole.to(tl.int8), mask=at < size)
        else:
            tl.store(to, to_e4m3(steps), mask=at < size)


@triton.jit
def _unpack(packed, scales, out, size, KIND: tl.constexpr, TILE: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at = part * TILE + tl.arange(0, TILE)
    stored = tl.load(packed + number * size + at, mask=at < size, other=0)
    if KIND == 2:
        values = stored.to(tl.float32) * tl.load(scales + number)
    elif KIND == 3:
        values = from_e4m3(stored) * tl.load(scales + number * tl.num_programs(1) + part)
    else:
        values = stored.to(tl.float32)
    tl.store(out + number * size + at, narrow(values, out.dtype.element_ty), mask=at < size)


_MOVED = {"packed": "*u8", "scales": "*fp32", "size": "i32"}

AOT_CASES = (
    *(
        AotCase(
            f"wire_rows/pack/{name}",
            _pack,
            {**_MOVED, "packed": packed, "x": "*bf16", "rows": "*i32", "stride": "i32"},
            {"KIND": kind, "TILE": tile},
            aligned=("x", "packed", "stride", "size"),
            mma=False,
            exact=True,
        )
        for name, packed, kind, tile in (("fp8", "*u8", 3, FP8_BLOCK), ("int8", "*i8", 2, 8192))
    ),
    AotCase(
        "wire_rows/unpack/fp8",
        _unpack,
        {**_MOVED, "out": "*bf16"},
        {"KIND": 3, "TILE": FP8_BLOCK},
        aligned=("packed", "out", "size"),
        mma=False,
    ),
)
