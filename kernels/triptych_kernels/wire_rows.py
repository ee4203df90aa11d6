"""Rows as they travel to experts: rounded to a small type, with scales where it needs them.

int8 has a scale per row, as in LLM.int8() (arXiv 2208.07339, section 2); fp8 (e4m3fn) one for every
128 columns, as in DeepSeek-V3's dispatch (arXiv 2412.19437, section 3.3). A scale is the largest
magnitude over the type's largest number, so nothing is clipped.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RowType = Literal["float32", "bfloat16", "int8", "fp8"]

FP8_BLOCK = 128
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
_LARGEST = {"int8": 127.0, "fp8": 448.0}


def row_bytes(row_type: RowType, size: int) -> int:
    """Of one row of `size` numbers, without scales."""
    return size * _DTYPES[row_type].itemsize


def num_scales(row_type: RowType, size: int) -> int:
    """float32 numbers beside each row."""
    return {"int8": 1, "fp8": -(-size // FP8_BLOCK)}.get(row_type, 0)


def empty_rows(
    shape: torch.Size, row_type: RowType, device: torch.device | None = None
) -> tuple[Tensor, Tensor | None]:
    """Room for rows [M, H] and their scales [M, scales]; None where the type has none."""
    scales = num_scales(row_type, shape[1])
    room = torch.empty(shape, dtype=_DTYPES[row_type], device=device)
    return room, torch.empty(shape[0], scales, device=device) if scales else None


def quantise_rows(x: Tensor, row_type: RowType) -> tuple[Tensor, Tensor | None]:
    """x [M, H] float32 → rows [M, H] of that type, to nearest even, and scales [M, scales] float32.

    A scale is not finite where one of its numbers is not.
    """
    rows, scales = empty_rows(x.shape, row_type)
    if scales is None:
        return rows.copy_(x), None
    width = x.shape[1] if row_type == "int8" else FP8_BLOCK
    for number, block in enumerate(torch.split(x, width, dim=1)):
        largest = (block.abs().amax(1) / _LARGEST[row_type]).clamp(min=torch.finfo().tiny)
        scale = torch.where(block.isfinite().all(1), largest, torch.nan)
        scales[:, number] = scale
        steps = block / scale[:, None]
        whole = steps.round().nan_to_num() if row_type == "int8" else steps
        rows[:, number * width : number * width + block.shape[1]] = whole.to(rows.dtype)
    return rows, scales


def dequantise_rows(rows: Tensor, scales: Tensor | None) -> Tensor:
    """What the other side computes with: [M, H] float32."""
    if scales is None:
        return rows.float()
    width = FP8_BLOCK if rows.dtype == torch.float8_e4m3fn else rows.shape[1]
    return rows.float() * scales.repeat_interleave(width, 1)[:, : rows.shape[1]]
