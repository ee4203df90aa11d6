"""Tiles are left out as the rule says, row by row, and what that costs is certified."""

from __future__ import annotations

import math

import pytest
import torch

from triptych.testing.paged_attention import (
    PagedBatch,
    exact_attention,
    exact_logits,
    paged_batch,
    replay_skipping,
)
from triptych_kernels.triton.attention import (
    NO_BUDGET,
    SPLIT_TOKENS,
    Attended,
    AttentionShape,
    PagedKv,
    Skipping,
    tiles_for,
)
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.prefill import paged_prefill

TILE = tiles_for(torch.float32, 64).tokens


def skipping(batch: PagedBatch, threshold: float, budget: float | None = None) -> Skipping:
    def of_each(number: float) -> torch.Tensor:
        return torch.full((len(batch.lengths),), number, device=batch.q.device)

    return Skipping(of_each(threshold), None if budget is None else of_each(budget), record=True)


def prefill(batch: PagedBatch, shape: AttentionShape, skip: Skipping | None) -> Attended:
    kv = PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)
    starts, most = batch.row_starts, batch.max_rows
    return paged_prefill(batch.q, kv, starts, shape, max_rows=most, skipping=skip)


def decode(
    batch: PagedBatch, shape: AttentionShape, skip: Skipping | None, block_rows: int = 16
) -> Attended:
    kv = PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)
    starts, most, length = batch.row_starts, batch.max_rows, batch.max_length
    return paged_decode(
        batch.q,
        kv,
        starts,
        shape,
        max_rows=most,
        max_length=length,
        skipping=skip,
        block_rows=block_rows,
    )


KERNELS = pytest.mark.parametrize("attend", [prefill, decode])


@KERNELS
@pytest.mark.parametrize("threshold", [0.0, 1.0, math.nan])
def test_a_threshold_that_is_none_leaves_out_nothing_and_changes_no_bit(
    attend, threshold: float, device: torch.device
) -> None:
    batch = paged_batch(device, group=2, lengths=[200], rows=[2], peak=4.0)
    shape = AttentionShape(0.125)
    dense, found = attend(batch, shape, None), attend(batch, shape, skipping(batch, threshold))
    assert torch.equal(found.out, dense.out) and torch.equal(found.lse2, dense.lse2)
    assert found.counts is not None and found.counts[..., 0].sum() > 0
    assert found.counts[..., 1].sum() == 0 and not found.eps.any()
    assert not found.tiles_left_out.any()


@KERNELS
@pytest.mark.parametrize(
    "length, rows, window, budget",
    [(1200, 3, None, None), (1200, 1, None, 0.5), (500, 6, 300, None)],
)
def test_rows_leave_out_what_the_rule_says_and_lose_no_more_than_certified(
    attend,
    length: int,
    rows: int,
    window: int | None,
    budget: float | None,
    device: torch.device,
) -> None:
    batch = paged_batch(device, group=2, lengths=[length], rows=[rows], peak=4.0)
    shape = AttentionShape(0.125, window)
    found = attend(batch, shape, skipping(batch, 0.02, budget))
    logits = exact_logits(batch, 0, scale=0.125, window=window)
    values = batch.gathered(0)[1]
    out, _ = exact_attention(logits, values)
    apart = torch.cdist(values[:, 0], values[:, 0]).max()
    left = 0
    for row in range(rows):
        for head in range(2):
            told = replay_skipping(
                logits[row, head],
                length - rows + row,
                threshold=0.02,
                budget=NO_BUDGET if budget is None else budget,
                tile=TILE,
                split=SPLIT_TOKENS,
            )
            tiles = torch.nonzero(found.tiles_left_out[row, head]).flatten().tolist()
            assert tiles == told.tiles
            left += len(tiles)
            eps = found.eps[row, head].item()
            bound = told.omitted / 2 ** found.lse2[row, head].item()
            assert eps == pytest.approx(bound, rel=1e-3)
            assert budget is None or eps <= budget
            error = (found.out[row, head].double() - out[row, head]).norm()
            assert error <= eps / (1 + eps) * apart + 1e-5
    assert left > 0, "these logits are too flat to prove anything"


@KERNELS
def test_what_a_row_leaves_out_depends_on_no_neighbour(attend, device: torch.device) -> None:
    batch = paged_batch(device, lengths=[1060], rows=[6], peak=4.0)
    shape = AttentionShape(0.125)
    whole = attend(batch, shape, skipping(batch, 0.02))
    for first, end in ((0, 4), (4, 6)):
        part = batch.part(0, first, end)
        chunk = attend(part, shape, skipping(part, 0.02))
        assert torch.equal(chunk.out, whole.out[first:end])
        assert torch.equal(chunk.tiles_left_out, whole.tiles_left_out[first:end])
    assert whole.tiles_left_out.any()


def test_prefill_and_decode_leave_out_the_same_and_get_the_same_bits(device: torch.device) -> None:
    batch = paged_batch(device, lengths=[1100], rows=[3], peak=4.0)
    shape, skip = AttentionShape(0.125), skipping(batch, 0.02)
    prefilled, decoded = prefill(batch, shape, skip), decode(batch, shape, skip, block_rows=64)
    assert torch.equal(prefilled.tiles_left_out, decoded.tiles_left_out)
    assert torch.equal(prefilled.out, decoded.out) and torch.equal(prefilled.lse2, decoded.lse2)


@KERNELS
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_no_number_is_never_left_out(attend, device: torch.device) -> None:
    batch = paged_batch(device, lengths=[400], rows=[1], peak=4.0)
    batch.keys[batch.tables[0, 10].long(), 3] = torch.nan
    found = attend(batch, AttentionShape(0.125), skipping(batch, 0.5))
    assert found.out.isnan().all()


@KERNELS
def test_a_tile_that_all_rows_leave_out_is_not_weighed(attend, device: torch.device) -> None:
    """One key far above all others, at the end: between it and the first tile is nothing."""
    batch = paged_batch(device, lengths=[6 * TILE], rows=[1])
    batch.keys[batch.tables[0, -1].long(), 15] = 30 * batch.q[0, 0] / batch.q[0, 0].norm()
    found = attend(batch, AttentionShape(0.125), skipping(batch, 0.01))
    assert found.counts.flatten().tolist() == [6, 4]
    assert found.tiles_left_out[0, 0].tolist() == [0, 1, 1, 1, 1, 0]


def test_thresholds_of_the_wrong_size_are_refused(device: torch.device) -> None:
    batch = paged_batch(device, lengths=[20], rows=[1])
    with pytest.raises(ValueError, match=r"skipping.thresholds must be float32 \[1\]"):
        decode(batch, AttentionShape(0.125), Skipping(torch.zeros(2, device=device)))


@KERNELS
@pytest.mark.parametrize("window", [None, 300])
def test_scaled_thresholds_are_a_rows_scale_over_what_it_sees(
    attend, window: int | None, device: torch.device
) -> None:
    """As requests ask for it; so the threshold is not the chunk's."""
    length, rows, scale = 500, 3, 32.0
    batch = paged_batch(device, group=2, lengths=[length], rows=[rows], peak=4.0)
    shape = AttentionShape(0.125, window)
    scales = torch.full((1,), scale, device=device)
    found = attend(batch, shape, Skipping(scales, record=True, scaled=True))
    logits = exact_logits(batch, 0, scale=0.125, window=window)
    left = 0
    for row in range(rows):
        position = length - rows + row
        for head in range(2):
            told = replay_skipping(
                logits[row, head],
                position,
                threshold=scale / min(position + 1, window or length),
                budget=NO_BUDGET,
                tile=TILE,
                split=SPLIT_TOKENS,
            )
            assert torch.nonzero(found.tiles_left_out[row, head]).flatten().tolist() == told.tiles
            left += len(told.tiles)
    assert left > 0, "these logits are too flat to prove anything"
