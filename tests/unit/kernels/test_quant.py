"""Quantised matrices: what is lost, what must not be, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych_kernels.packer import ReferencePacker
from triptych_kernels.quant import (
    GROUPS,
    Affine,
    dequantise,
    join,
    promote,
    quantise,
    relative_error,
)


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.1


def on_random_grids(rows: int, columns: int, bits: int, group: int) -> Affine:
    source = torch.Generator().manual_seed(1)
    shape = (rows, -(-columns // group))
    q = torch.randint(0, 2**bits, (rows, columns), generator=source).to(torch.uint8)
    q[:, ::group], q[:, 1::group] = 0, 2**bits - 1  # the whole range is in use, as after min/max
    scale = (torch.rand(shape, generator=source) * 0.02 + 0.001).half()
    low = (-torch.rand(shape, generator=source)).half()
    return Affine(q, scale, low, bits, group)


@pytest.mark.parametrize("columns", [32, 100, 576, 40_001])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(("bits", "error"), [(8, 0.0075), (4, 0.105)])
def test_quantised_weights_are_near(bits: int, error: float, group: int, columns: int) -> None:
    weight = noise(6, columns)
    affine = quantise(weight, bits, group)
    assert affine.shape == weight.shape and int(affine.q.max()) < 2**bits
    assert affine.scale.shape == affine.low.shape == (6, -(-columns // group))
    assert 0 < relative_error(weight, affine) < error
    wrong = (dequantise(affine) - weight).norm() / weight.norm()
    assert relative_error(weight, affine) == pytest.approx(float(wrong), rel=1e-4)


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    weight = noise(64, 768)
    errors = [
        relative_error(weight, quantise(weight, bits, group))
        for bits, group in [(8, 32), (8, 64), (8, 128), (4, 32), (4, 64), (4, 128)]
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("group", GROUPS)
def test_the_search_beats_spreading_from_least_to_largest(group: int) -> None:
    weight = noise(64, 768)
    groups = weight.view(64, -1, group)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = (high - low) / 15
    naive = ((groups - low) / step).round() * step + low
    naive_error = float((naive - groups).norm() / weight.norm())
    assert relative_error(weight, quantise(weight, 4, group)) < 0.96 * naive_error


def test_weights_on_a_4_bit_grid_find_it_again() -> None:
    stored = on_random_grids(32, 320, 4, 32)
    again = quantise(dequantise(stored), 4, 32)
    assert torch.equal(again.q, stored.q)
    assert torch.equal(dequantise(again), dequantise(stored))


def test_8_bit_grids_are_symmetric() -> None:
    affine = quantise(noise(8, 256), 8, 64)
    assert torch.equal(affine.low, -128 * affine.scale)
    opposite = quantise(-noise(8, 256), 8, 64)
    assert torch.equal(dequantise(opposite), -dequantise(affine))


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zero(bits: int) -> None:
    affine = quantise(torch.zeros(3, 100), bits, 32)
    assert not dequantise(affine).any() and not affine.scale.any()
    assert relative_error(torch.zeros(3, 100), affine) == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-39, 1e-30, 1e-8, 1e-6, 1e-4, 1e3, 1e5, 1e30])
def test_scales_beyond_float16_are_clamped(size: float, bits: int) -> None:
    weight = noise(4, 64) * size
    affine = quantise(weight, bits, 32)
    near = dequantise(affine)
    assert near.isfinite().all()
    # A float16 has no finer step than 6e-8, and reaches 65,504.
    allowed = 0.3 * weight.abs() + 0.2 * weight.abs().amax() + 1e-7
    assert ((near - weight).abs() <= torch.where(weight.abs() < 6e4, allowed, torch.inf)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_one_value_keep_it(bits: int) -> None:
    weight = torch.full((2, 70), 0.37)
    torch.testing.assert_close(dequantise(quantise(weight, bits, 32)), weight, rtol=5e-3, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, bits: int) -> None:
    weight = noise(4, 64)
    weight[2, 40] = value
    with pytest.raises(ValueError, match="not finite"):
        quantise(weight, bits, 32)


def test_half_precision_weights_are_quantised_like_the_float32_they_are() -> None:
    weight = noise(8, 100).bfloat16()
    halves, floats = quantise(weight, 4, 32), quantise(weight.float(), 4, 32)
    assert torch.equal(dequantise(halves), dequantise(floats))


@pytest.mark.parametrize("columns", [256, 100, 40])
@pytest.mark.parametrize("group", [32, 64])
def test_promoting_changes_no_weight(group: int, columns: int) -> None:
    coarse = on_random_grids(5, columns, 4, 128)
    fine = promote(coarse, 8, group)
    assert (fine.bits, fine.group) == (8, group)
    assert torch.equal(dequantise(fine), dequantise(coarse))


def test_joining_changes_no_weight() -> None:
    parts = [
        on_random_grids(3, 100, 4, 128),
        on_random_grids(2, 100, 8, 64),
        on_random_grids(4, 100, 4, 32),
    ]
    joined = join(parts)
    assert (joined.bits, joined.group, joined.shape) == (8, 32, (9, 100))
    assert torch.equal(dequantise(joined), torch.cat([dequantise(part) for part in parts]))


def test_a_packed_matrix_is_what_its_size_says() -> None:
    affine = on_random_grids(16, 64, 4, 32)
    assert affine.packed_bits == 16 * 64 * 4 + 16 * 2 * 32


def test_weights_can_be_written_where_they_are_wanted() -> None:
    affine, target = on_random_grids(3, 100, 4, 32), torch.empty(3, 100, dtype=torch.bfloat16)
    assert dequantise(affine, target) is target
    assert torch.equal(target, dequantise(affine).bfloat16())


def test_a_tied_embedding_reads_the_rows_of_its_head() -> None:
    affine, ids = on_random_grids(50, 600, 8, 32), torch.tensor([49, 0, 7, 7])
    head, table = ReferencePacker().affine(affine), ReferencePacker().embedding(affine)
    assert torch.equal(head.row(ids), dequantise(affine)[ids])
    assert torch.equal(table.row(ids), dequantise(affine)[ids])
    x = noise(3, 600)
    torch.testing.assert_close(head(x), x @ dequantise(affine).t())


def test_packers_keep_nothing_of_the_callers_memory() -> None:
    weight, ids = noise(4, 32).bfloat16(), torch.arange(4)
    packed, table = ReferencePacker().dense(weight), ReferencePacker().embedding(weight)
    expected = weight.float()
    weight.zero_()
    assert torch.equal(packed.row(ids), expected) and torch.equal(table.row(ids), expected)
