"""What sequences share is read once, and no bit of a row shows it."""

from __future__ import annotations

import pytest
import torch

from triptych.engine.triton_bundles import Bundle, find_bundles, share_splits
from triptych.testing.paged_attention import PagedBatch, paged_batch
from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.tree import make_trees, verify_attention

SPLIT = 1024
PAGE = 16
# Two bundles, one of them of sequences that have nothing but a row behind it; and one alone.
LENGTHS = [SPLIT + 20, SPLIT + 70, SPLIT + 1, SPLIT + 1, 40]
ROWS = [2, 3, 1, 1, 1]
BUNDLES = [Bundle(2, 1), Bundle(2, 1)]


def sharing_batch(device: torch.device, dtype: torch.dtype, dim: int = 32) -> PagedBatch:
    """Members of a bundle have the tables of its first one, as far as that is shared."""
    batch = paged_batch(
        device, dtype=dtype, dim=dim, kv_heads=1, group=3, lengths=LENGTHS, rows=ROWS, page=PAGE
    )
    first = 0
    for members, splits in BUNDLES:
        pages = splits * SPLIT // PAGE
        batch.tables[first : first + members, :pages] = batch.tables[first, :pages]
        first += members
    return batch


def attend(
    batch: PagedBatch, shape: AttentionShape, bundles: list[Bundle], *, trees: bool = False
) -> Attended:
    kv = PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)
    starts = batch.row_starts
    shared = share_splits(bundles, batch.tables.cpu(), starts.tolist(), batch.q.device)
    if trees:  # siblings, all of them
        masks = [[1 << row for row in range(rows)] for rows in ROWS]
        made = make_trees(masks, batch.q.device)
        length = batch.max_length
        return verify_attention(batch.q, kv, made, shape, max_length=length, shared=shared)[0]
    return paged_decode(
        batch.q,
        kv,
        starts,
        shape,
        max_rows=batch.max_rows,
        max_length=batch.max_length,
        shared=shared,
        block_rows=64,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_shared_changes_no_bit(dtype: torch.dtype, device: torch.device) -> None:
    """In bfloat16 with a cap and sinks."""
    shape = AttentionShape(0.125)
    if dtype == torch.bfloat16:
        sinks = torch.tensor([0.5, 2.0, -1.0], device=device)
        shape = AttentionShape(0.125, softcap=20.0, sinks=sinks)
    batch = sharing_batch(device, dtype)
    alone, together = (attend(batch, shape, of) for of in ([], BUNDLES))
    assert torch.equal(together.out, alone.out)
    assert torch.equal(together.lse2, alone.lse2)


def test_nodes_of_trees_share_what_is_before_their_trees(device: torch.device) -> None:
    batch = sharing_batch(device, torch.float32)
    shape = AttentionShape(0.125)
    alone, together = (attend(batch, shape, of, trees=True) for of in ([], BUNDLES))
    assert torch.equal(together.out, alone.out)
    assert torch.equal(together.lse2, alone.lse2)


def test_shared_splits_are_read_out_of_the_bundles_table_alone(device: torch.device) -> None:
    """Whatever else the members' own tables say there."""
    batch = sharing_batch(device, torch.float32)
    expected = attend(batch, AttentionShape(0.125), BUNDLES)
    pages = SPLIT // PAGE
    batch.tables[1, :pages] = batch.tables[3, :pages] = batch.tables[4, 0]
    found = attend(batch, AttentionShape(0.125), BUNDLES)
    assert torch.equal(found.out, expected.out)


def test_rows_of_a_bundle_that_fill_several_tiles_keep_their_bits(device: torch.device) -> None:
    """Four sequences of one row and 17 heads each: 68 rows for a tile of 64."""
    count = 4
    batch = paged_batch(device, dim=16, group=17, lengths=[SPLIT + 5], rows=[1], page=PAGE)
    random = torch.Generator().manual_seed(1)
    q = torch.randn(count, 17, 16, generator=random).to(device)
    many = PagedBatch(
        q,
        batch.keys,
        batch.values,
        batch.tables.expand(count, -1).contiguous(),
        batch.lengths.expand(count).contiguous(),
        torch.arange(count + 1, dtype=torch.int32, device=device),
    )
    alone, together = (attend(many, AttentionShape(0.25), of) for of in ([], [Bundle(count, 1)]))
    assert torch.equal(together.out, alone.out)


def test_bundles_stand_first_and_everybody_keeps_a_place() -> None:
    def table(*parts: tuple[int, int]) -> list[int]:
        return [first + n for first, pages in parts for n in range(pages)]

    pages = SPLIT // PAGE
    one, other = (0, 2 * pages + 3), (1000, pages)
    tables = [
        table((5000, 2 * pages)),
        table(other, (2000, 9)),
        table(one, (3000, 1)),
        table(other, (4000, 9)),
        table(one, (4500, 1)),
    ]
    order, bundles = find_bundles(tables, [len(of) * PAGE for of in tables], PAGE)
    assert order == [2, 4, 1, 3, 0]
    assert bundles == [Bundle(2, 2), Bundle(2, 1)]
    assert find_bundles(tables, [SPLIT - 1] * 5, PAGE) == ([0, 1, 2, 3, 4], [])


def test_a_window_or_skipping_cannot_share(device: torch.device) -> None:
    batch = sharing_batch(device, torch.float32)
    with pytest.raises(ValueError, match="shared: neither tables per KV head, nor windows"):
        attend(batch, AttentionShape(0.125, window=8), BUNDLES)


def test_rows_that_see_nothing_are_zero(device: torch.device) -> None:
    batch = paged_batch(device, group=2, lengths=[20], rows=[3])
    nothing = torch.zeros_like(batch.lengths)
    kv = PagedKv(batch.keys, batch.values, batch.tables, nothing)
    shape = AttentionShape(0.125)
    found = paged_decode(batch.q, kv, batch.row_starts, shape, max_rows=3, max_length=0)
    assert not found.out.any() and (found.lse2 == -torch.inf).all()
