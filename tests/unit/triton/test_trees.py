"""A row of a tree gets what plain decoding would give it; scores are shares of a softmax."""

from __future__ import annotations

import pytest
import torch

from triptych.testing.paged_attention import (
    PagedBatch,
    exact_attention,
    exact_logits,
    paged_batch,
)
from triptych_kernels.reference import page_scores
from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv, Skipping
from triptych_kernels.triton.column_scores import column_scores
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.tree import make_trees, verify_attention

SHAPE = AttentionShape(0.125)
# 0 ─ 1 ─ 3 ─ 5     and 6 beside 0
#   └ 2 ─ 4
PARENTS = [-1, 0, 0, 1, 2, 3, -1]


def masks_of(parents: list[int]) -> list[int]:
    masks: list[int] = []
    for row, parent in enumerate(parents):
        masks.append(1 << row | (masks[parent] if parent >= 0 else 0))
    return masks


def kv_of(batch: PagedBatch) -> PagedKv:
    return PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)


def verify(
    batch: PagedBatch, parents: list[int], scores_by: int | None = None
) -> tuple[Attended, torch.Tensor | None]:
    trees = make_trees([masks_of(parents)] * len(batch.lengths), batch.q.device)
    return verify_attention(
        batch.q, kv_of(batch), trees, SHAPE, max_length=batch.max_length, scores_by=scores_by
    )


def seen_by(parents: list[int], length: int, device: torch.device) -> torch.Tensor:
    seen = torch.ones(len(parents), length, dtype=torch.bool, device=device)
    for row, mask in enumerate(masks_of(parents)):
        for other in range(len(parents)):
            seen[row, length - len(parents) + other] = bool(mask >> other & 1)
    return seen


def path_to(row: int) -> list[int]:
    return [] if row < 0 else [*path_to(PARENTS[row]), row]


@pytest.mark.parametrize("length", [40, 133])  # the tree begins in a tile, or crosses into one
def test_rows_see_their_own_path(length: int, device: torch.device) -> None:
    rows = len(PARENTS)
    batch = paged_batch(device, group=3, lengths=[length, 20], rows=[rows, rows])
    found, _ = verify(batch, PARENTS)
    for sequence, tokens in enumerate((length, 20)):
        seen = seen_by(PARENTS, tokens, device)
        logits = exact_logits(batch, sequence, scale=0.125, seen=seen)
        out, lse2 = exact_attention(logits, batch.gathered(sequence)[1])
        of = batch.rows_of(sequence)
        torch.testing.assert_close(found.out[of].double(), out, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(found.lse2[of].double(), lse2, rtol=0, atol=1e-3)


def test_a_window_counts_positions_of_the_path(device: torch.device) -> None:
    start, rows = 10, len(PARENTS)
    batch = paged_batch(device, lengths=[start + rows], rows=[rows])
    trees = make_trees([masks_of(PARENTS)], device)
    windowed = AttentionShape(0.125, window=4)
    found, _ = verify_attention(batch.q, kv_of(batch), trees, windowed, max_length=start + rows)
    seen = torch.zeros(rows, start + rows, dtype=torch.bool, device=device)
    for row in range(rows):
        path = [*range(start), *(start + node for node in path_to(row))]
        seen[row, path[-4:]] = True
    out, _ = exact_attention(exact_logits(batch, 0, scale=0.125, seen=seen), batch.gathered(0)[1])
    torch.testing.assert_close(found.out.double(), out, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("threshold", [None, 0.05])
@pytest.mark.parametrize("row", [4, 5])
def test_rows_get_the_bits_of_plain_decoding(
    row: int, threshold: float | None, device: torch.device
) -> None:
    """Across the end of a tile, and with some of those before left out."""
    prefix, rows = 382, len(PARENTS)
    batch = paged_batch(device, lengths=[prefix + rows], rows=[rows], peak=5.0)
    skipping = None
    if threshold is not None:
        skipping = Skipping(torch.tensor([threshold], device=device), record=True)
    trees = make_trees([masks_of(PARENTS)], device)
    found, _ = verify_attention(
        batch.q, kv_of(batch), trees, SHAPE, max_length=prefix + rows, skipping=skipping
    )
    page, table = batch.keys.shape[1], batch.tables[0].long()
    for pool in (batch.keys, batch.values):  # the path's tokens, one behind the other
        for depth, node in enumerate(path_to(row)):
            to, of = prefix + depth, prefix + node
            pool[table[to // page], to % page] = pool[table[of // page], of % page].clone()
    last = len(path_to(row)) - 1
    alone = batch.part(0, last, last + 1)
    decoded = paged_decode(
        batch.q[row : row + 1],
        kv_of(alone),
        alone.row_starts,
        SHAPE,
        max_rows=1,
        max_length=alone.max_length,
        skipping=skipping,
        block_rows=64,
    )
    assert torch.equal(decoded.out[0], found.out[row])
    assert torch.equal(decoded.lse2[0], found.lse2[row])
    if skipping is not None:
        assert torch.equal(decoded.tiles_left_out[0], found.tiles_left_out[row])
        assert decoded.tiles_left_out.any()


def test_a_chain_is_causal_attention(device: torch.device) -> None:
    batch = paged_batch(device, group=2, lengths=[130], rows=[5])
    found, _ = verify(batch, [-1, 0, 1, 2, 3])
    chain = paged_decode(
        batch.q, kv_of(batch), batch.row_starts, SHAPE, max_rows=5, max_length=130, block_rows=64
    )
    assert torch.equal(found.out, chain.out) and torch.equal(found.lse2, chain.lse2)


def test_a_branch_does_not_show_in_its_siblings(device: torch.device) -> None:
    batch = paged_batch(device, lengths=[70], rows=[len(PARENTS)])
    before, _ = verify(batch, PARENTS)
    page, table = batch.keys.shape[1], batch.tables[0].long()
    slot = 63 + 2  # node 2's, whose child is node 4
    batch.keys[table[slot // page], slot % page] += 1
    batch.values[table[slot // page], slot % page] += 1
    after, _ = verify(batch, PARENTS)
    same = [torch.equal(after.out[row], before.out[row]) for row in range(len(PARENTS))]
    assert same == [True, True, False, True, False, True, True]


def test_scores_are_shares_of_the_softmax(device: torch.device) -> None:
    batch = paged_batch(device, kv_heads=2, group=2, lengths=[100], rows=[6])
    chain = paged_decode(batch.q, kv_of(batch), batch.row_starts, SHAPE, max_rows=6, max_length=100)
    found = column_scores(
        batch.q, kv_of(batch), batch.row_starts, SHAPE, chain.lse2, max_length=100, pool=16
    )
    keys, _ = batch.gathered(0)
    pages = torch.nn.functional.pad(keys.float().cpu(), (0, 0, 0, 0, 0, 12)).view(7, 16, 2, 64)
    exact = page_scores(batch.q.cpu(), pages, torch.arange(7), 94, scale=0.125)
    torch.testing.assert_close(found[0].cpu(), exact, rtol=1e-4, atol=1e-6)


def test_scores_of_a_tree_go_to_the_slots_that_its_rows_see(device: torch.device) -> None:
    batch = paged_batch(device, group=2, lengths=[70], rows=[len(PARENTS)])
    _, found = verify(batch, PARENTS, scores_by=1)
    logits = exact_logits(batch, 0, scale=0.125, seen=seen_by(PARENTS, 70, device))
    shares = torch.softmax(logits * torch.log(torch.tensor(2.0)), dim=2).mean((0, 1))
    torch.testing.assert_close(found[0, 0].double(), shares, rtol=1e-4, atol=1e-6)


def test_masks_that_are_no_tree_are_refused(device: torch.device) -> None:
    for masks, told in (
        ([1, 1], "row 1 must see itself"),
        ([1, 3, 6], "row 2 must see all that its parent sees"),
        (masks_of(list(range(-1, 64))), "has 65 rows"),
    ):
        with pytest.raises(ValueError, match=told):
            make_trees([masks], device)


def test_a_tree_may_have_as_many_rows_as_a_mask_has_bits(device: torch.device) -> None:
    batch = paged_batch(device, lengths=[70], rows=[64])
    found, scores = verify(batch, list(range(-1, 63)), scores_by=1)
    assert found.out.isfinite().all()
    torch.testing.assert_close(scores.sum(), torch.ones((), device=device))
