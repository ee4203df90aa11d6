"""RMS norm with the residual add in front of it: the stream is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels.triton.aot import AotCase
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.rounding import narrow


def add_rms_norm(
    hidden: Tensor,
    delta: Tensor | None,
    weight: Tensor,
    eps: float,
    *,
    weight_offset: float = 0.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """hidden [M, H] += delta [M, H], in place, then its `triptych_kernels.rms_norm`: [M, H] of
    `out_dtype`, default that of hidden. weight [H].
    """
    rows, size = hidden.shape
    assert hidden.stride(1) == 1 and (delta is None or delta.stride(1) == 1), "contiguous rows"
    out = torch.empty(rows, size, dtype=out_dtype or hidden.dtype, device=hidden.device)
    _add_rms_norm[(rows,)](
        hidden,
        hidden if delta is None else delta,
        weight,
        out,
        hidden.stride(0),
        0 if delta is None else delta.stride(0),
        size,
        eps,
        weight_offset,
        ADD=delta is not None,
        OFFSET=weight_offset != 0.0,
        TILE=triton.next_power_of_2(size),
        num_warps=8,
        **NO_FUSION,
    )
    return out


@triton.jit
def _add_rms_norm(hidden, delta, weight, out, stride, delta_stride, size, eps, offset,
                  ADD: tl.constexpr, OFFSET: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, TILE)
    inside = at < size
    x = tl.load(hidden + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        more = tl.load(delta + row * delta_stride + at, mask=inside, other=0.0).to(tl.float32)
        # What is normed is what is stored.
        stored = narrow(x + more, hidden.dtype.element_ty)
        tl.store(hidden + row * stride + at, stored, mask=inside)
        x = stored.to(tl.float32)
    y = x * (1.0 / tl.sqrt_rn(tl.sum(x * x, 0) / size + eps))
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if OFFSET:  # noqa: SIM108
        y = y * (w + offset)
    else:
        y = narrow(y, hidden.dtype.element_ty).to(tl.float32) * w
    tl.store(out + row * size + at, narrow(y, out.dtype.element_ty), mask=inside)


AOT_CASES = (
    AotCase(
        "add_rms_norm/bf16/h4096",
        _add_rms_norm,
        {
            **dict.fromkeys(("hidden", "delta", "out"), "*bf16"),
            **dict.fromkeys(("stride", "delta_stride", "size"), "i32"),
            **dict.fromkeys(("eps", "offset"), "fp32"),
            "weight": "*fp32",
        },
        {"ADD": True, "OFFSET": False, "TILE": 4096},
        num_warps=8,
        aligned=("hidden", "delta", "out", "weight", "stride", "delta_stride", "size"),
        mma=False,
    ),
)
