"""Products with packed weights: the weights as they are stored, a row's bits its own."""

from __future__ import annotations

import pytest
import torch

from triptych.testing.on_triton import knows_fp8
from triptych_kernels.fp8 import Fp8Weight, dequantise_fp8, quantise_fp8
from triptych_kernels.quant import dequantise, quantise
from triptych_kernels.triton import packed_linear, wire_rows
from triptych_kernels.wire_rows import dequantise_rows

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-3, torch.bfloat16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (8, 32), (8, 128)])
def test_affine_weights_multiply_as_the_rounded_ones(
    bits: int, group: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Neither rows, columns nor K are whole tiles, and the last group is short."""
    chance = torch.Generator().manual_seed(bits * group)
    weight = quantise(torch.randn(70, 200, generator=chance), bits, group)
    x = torch.randn(67, 200, generator=chance).to(dtype)
    bias = torch.randn(70, generator=chance)
    packed = packed_linear.pack_affine(weight)
    on_device = type(packed)(
        packed.q.to(device), packed.scale.to(device), packed.low.to(device), bits, group, 200
    )
    rows = x.to(device)
    got = packed_linear.linear_affine(rows, on_device, bias.to(device), torch.float32)
    expected = x.float() @ dequantise(weight).to(dtype).float().t() + bias
    torch.testing.assert_close(got.cpu(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    alone = packed_linear.linear_affine(rows[66:], on_device, bias.to(device), torch.float32)
    assert torch.equal(alone[0], got[66])


def test_four_bits_take_half_a_byte() -> None:
    weight = quantise(torch.randn(8, 128), 4, 64)
    assert packed_linear.pack_affine(weight).q.nbytes == 8 * 128 // 2


def test_fp8_weights_multiply_rows_as_they_travel(device: torch.device) -> None:
    if not knows_fp8(device):
        pytest.skip("this GPU knows no e4m3")
    chance = torch.Generator().manual_seed(8)
    weight = quantise_fp8(torch.randn(200, 300, generator=chance))
    x = torch.randn(67, 300, generator=chance)
    every = torch.arange(67, dtype=torch.int32, device=device)
    rows, scales = wire_rows.pack_rows(x.to(device), every, "fp8")
    assert scales is not None
    on_device = Fp8Weight(weight.q.to(device), weight.scale.to(device))
    got = packed_linear.linear_fp8(rows, scales, on_device, out_dtype=torch.float32)
    whole = dequantise_rows(rows.cpu(), scales.cpu()) @ dequantise_fp8(weight).t()
    torch.testing.assert_close(got.cpu(), whole, rtol=1e-3, atol=1e-2)
    alone = packed_linear.linear_fp8(rows[66:], scales[66:], on_device, out_dtype=torch.float32)
    assert torch.equal(alone[0], got[66])


def test_weights_that_were_stored_in_fp8_blocks_get_their_numbers_back() -> None:
    chance = torch.Generator().manual_seed(9)
    stored = quantise_fp8(torch.randn(200, 300, generator=chance))
    again = quantise_fp8(dequantise_fp8(stored))
    assert torch.equal(again.q.float(), stored.q.float())
    torch.testing.assert_close(again.scale, stored.scale, rtol=2**-22, atol=0)


def test_weights_that_are_no_numbers_are_not_quantised() -> None:
    with pytest.raises(ValueError, match="weights are not finite numbers"):
        quantise_fp8(torch.tensor([[1.0, torch.inf]]))
