"""Rows packed by Triton are those of the reference, to the bit."""

from __future__ import annotations

import pytest
import torch

from triptych_kernels.triton import wire_rows
from triptych_kernels.wire_rows import RowType, dequantise_rows, quantise_rows


@pytest.mark.parametrize("row_type", ["float32", "bfloat16", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_travel_as_the_reference_sends_them(
    row_type: RowType, dtype: torch.dtype, device: torch.device
) -> None:
    """Large and tiny rows, zeros, a row with ∞, a place that nobody fills; 300 is no multiple."""
    chance = torch.Generator().manual_seed(4)
    x = torch.randn(6, 300, generator=chance)
    x *= torch.tensor([1e-3, 1.0, 100.0, 1e-20, 0.0, 1.0])[:, None]
    x[5, 7] = torch.inf
    x = x.to(dtype)
    rows = torch.tensor([2, 0, -1, 0, 5, 3, 4], dtype=torch.int32)
    gathered = torch.where(rows[:, None] >= 0, x.float()[rows.long()], 0.0)
    expected, expected_scales = quantise_rows(gathered, row_type)
    packed, scales = wire_rows.pack_rows(x.to(device), rows.to(device), row_type)
    assert torch.equal(packed.cpu().view(torch.uint8), expected.view(torch.uint8))
    if scales is None:
        assert expected_scales is None
    else:
        assert expected_scales is not None
        torch.testing.assert_close(scales.cpu(), expected_scales, rtol=0, atol=0, equal_nan=True)
    back = wire_rows.unpack_rows(packed, scales, torch.float32).cpu()
    whole = dequantise_rows(expected, expected_scales)
    torch.testing.assert_close(back, whole, rtol=0, atol=0, equal_nan=True)
