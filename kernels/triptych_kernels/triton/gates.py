"""The gates of feed-forward units, in float32."""

from __future__ import annotations

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.reference import SWIGLU_ALPHA, SWIGLU_LIMIT
from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.rounding import narrow

Gate = Literal["silu", "gelu_tanh", "clamped_swiglu"]
GATES: dict[Gate, int] = {"silu": 0, "gelu_tanh": 1, "clamped_swiglu": 2}

_TILE = 1024
_ALPHA = tl.constexpr(SWIGLU_ALPHA)
_LIMIT = tl.constexpr(SWIGLU_LIMIT)


def gate_rows(gate_up: Tensor, gate: Gate, out_dtype: torch.dtype | None = None) -> Tensor:
    """gate_up [M, 2·I], gates before ups → act(gate) × up [M, I] of its type or of `out_dtype`."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous(), "rows are contiguous"
    out = torch.empty(rows, inner, dtype=out_dtype or gate_up.dtype, device=gate_up.device)
    _gate_rows[(rows, triton.cdiv(inner, _TILE))](
        gate_up, out, inner, GATE=GATES[gate], TILE=_TILE, **NO_FUSION
    )
    return out


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (1.0 + tl.exp(x + x))


@triton.jit
def gated(gate, up, GATE: tl.constexpr):
    """act(gate) × up; the twins are in `triptych_kernels.reference`. NaN stays NaN."""
    if GATE == 0:
        return gate / (1.0 + tl.exp(-gate)) * up
    elif GATE == 1:
        inner = (gate + gate * gate * gate * 0.044715) * 0.7978845608028654
        return gate * 0.5 * (1.0 + _tanh(inner)) * up
    else:
        gate = tl.where(gate > _LIMIT, _LIMIT, gate)
        up = tl.where(up > _LIMIT, _LIMIT, tl.where(up < -_LIMIT, -_LIMIT, up))
        return gate / (1.0 + tl.exp(gate * -_ALPHA)) * (up + 1.0)


@triton.jit
def _gate_rows(gate_up, out, inner, GATE: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = at < inner
    gate = tl.load(gate_up + row * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * inner + at, mask=inside, other=0.0).to(tl.float32)
    value = narrow(gated(gate, up, GATE), out.dtype.element_ty)
    tl.store(out + row * inner + at, value, mask=inside)


AOT_CASES = (
    AotCase(
        "gate_rows/silu/bf16",
        _gate_rows,
        {"gate_up": "*fp32", "out": "*bf16", "inner": "i32"},
        {"GATE": GATES["silu"], "TILE": _TILE},
        aligned=("gate_up", "out", "inner"),
        mma=False,
    ),
)
