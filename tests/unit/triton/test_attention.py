"""Attention in Triton is attention, and has the same bits however its rows are cut."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from triptych.testing.paged_attention import (
    PagedBatch,
    exact_attention,
    exact_logits,
    paged_batch,
)
from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.prefill import paged_prefill


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    dim: int
    kv_heads: int
    group: int
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    page: int = 16

    def __str__(self) -> str:
        extra = "-".join(name for name in ("window", "softcap", "sinks") if getattr(self, name))
        name = str(self.dtype).removeprefix("torch.")
        return f"{name}-d{self.dim}-g{self.group}-{max(self.lengths)}{extra and '-' + extra}"


# Together: every dtype, head size and group of the grid, lengths around pages and tiles, one behind
# a split, and each feature with and without others.
CASES = [
    Case(torch.float32, 64, 2, 1, (1, 16, 17), (1, 2, 5)),
    Case(torch.bfloat16, 128, 1, 4, (129, 64), (33, 16), window=40),
    Case(torch.float16, 80, 1, 3, (65, 128), (17, 1), softcap=3.0),
    Case(torch.float32, 96, 1, 7, (127, 63), (2, 1), sinks=True, page=32),
    Case(torch.bfloat16, 256, 1, 8, (33, 15), (1, 5), window=20, sinks=True),
    Case(torch.float32, 128, 1, 2, (1100,), (3,), softcap=20.0, sinks=True),
    Case(torch.float32, 64, 1, 1, (1100,), (70,), window=200),
]


def batch_of(case: Case, device: torch.device) -> PagedBatch:
    return paged_batch(
        device,
        dtype=case.dtype,
        dim=case.dim,
        kv_heads=case.kv_heads,
        group=case.group,
        lengths=list(case.lengths),
        rows=list(case.rows),
        page=case.page,
    )


def shape_of(case: Case, device: torch.device) -> AttentionShape:
    heads = case.kv_heads * case.group
    sinks = torch.linspace(-1, 2, heads, device=device) if case.sinks else None
    return AttentionShape(case.dim**-0.5, case.window, case.softcap, sinks)


def kv_of(batch: PagedBatch) -> PagedKv:
    return PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)


def prefill(batch: PagedBatch, shape: AttentionShape) -> Attended:
    return paged_prefill(batch.q, kv_of(batch), batch.row_starts, shape, max_rows=batch.max_rows)


def decode(batch: PagedBatch, shape: AttentionShape, block_rows: int = 16) -> Attended:
    return paged_decode(
        batch.q,
        kv_of(batch),
        batch.row_starts,
        shape,
        max_rows=batch.max_rows,
        max_length=batch.max_length,
        block_rows=block_rows,
    )


LONG_CASES = [
    Case(torch.bfloat16, 128, 1, 8, (131072, 4096), (33, 1)),
    Case(torch.float16, 96, 2, 3, (4097, 8192), (1, 16), window=1000, softcap=30.0),
]


@pytest.mark.parametrize("attend", [prefill, decode])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_get_what_dense_attention_gives(attend, case: Case, device: torch.device) -> None:
    batch, shape = batch_of(case, device), shape_of(case, device)
    found = attend(batch, shape)
    for sequence in range(len(case.lengths)):
        logits = exact_logits(
            batch, sequence, scale=shape.scale, window=case.window, softcap=case.softcap
        )
        values = batch.gathered(sequence)[1]
        out, lse2 = exact_attention(logits, values, shape.sinks)
        rows = batch.rows_of(sequence)
        exact = case.dtype == torch.float32
        rtol, atol = (2e-5, 2e-5) if exact else (1e-2, 2e-3 * values.abs().max().item())
        torch.testing.assert_close(found.out[rows].double(), out, rtol=rtol, atol=atol)
        torch.testing.assert_close(found.lse2[rows].double(), lse2, rtol=0, atol=1e-3)


@pytest.mark.parametrize("attend", [prefill, decode])
@pytest.mark.parametrize("case", LONG_CASES, ids=str)
def test_rows_get_it_in_long_contexts(attend, case: Case, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("a long context takes the interpreter hours: this needs a GPU")
    test_rows_get_what_dense_attention_gives(attend, case, device)


def test_chunks_and_single_rows_get_the_bits_of_the_whole(device: torch.device) -> None:
    """Across the end of a split, at 1024, and in whichever kernel."""
    batch = paged_batch(device, group=2, lengths=[1040], rows=[30])
    shape = AttentionShape(0.125)
    whole = prefill(batch, shape)
    for first, end in ((0, 11), (11, 30)):
        chunk = prefill(batch.part(0, first, end), shape)
        assert torch.equal(chunk.out, whole.out[first:end])
        assert torch.equal(chunk.lse2, whole.lse2[first:end])
    for block_rows in (16, 64):
        rows = decode(batch.part(0, 12, 15), shape, block_rows)
        if device.type == "cpu" or block_rows == 64:
            assert torch.equal(rows.out, whole.out[12:15])
            assert torch.equal(rows.lse2, whole.lse2[12:15])


@pytest.mark.parametrize("attend", [prefill, decode])
def test_batch_mates_do_not_show(attend, device: torch.device) -> None:
    batch = paged_batch(device, group=3, lengths=[90, 200, 5], rows=[4, 1, 3])
    shape = AttentionShape(0.125, window=70)
    together = attend(batch, shape)
    for sequence in range(3):
        rows = batch.rows_of(sequence)
        alone = attend(batch.part(sequence, 0, rows.stop - rows.start), shape)
        assert torch.equal(alone.out, together.out[rows])


@pytest.mark.parametrize("attend", [prefill, decode])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_key_that_is_no_number_reaches_the_rows_that_see_it(attend, device: torch.device) -> None:
    batch = paged_batch(device, lengths=[70], rows=[8])
    keys, page = batch.keys, batch.keys.shape[1]
    keys[batch.tables[0, 66 // page].long(), 66 % page] = torch.nan  # rows stand at 62 … 69
    found = attend(batch, AttentionShape(0.125))
    assert found.out[:4].isfinite().all()
    assert found.out[4:].isnan().all()


def test_each_kv_head_may_read_pages_of_its_own(device: torch.device) -> None:
    batch = paged_batch(device, kv_heads=2, group=2, lengths=[100], rows=[1])
    pages = torch.tensor([[0, 2, 6], [1, 5, 6]], device=device)  # of seven, the last one holds four
    tables = batch.tables[0].long()[pages].int()[:, None]
    lengths = torch.full((2, 1), 36, dtype=torch.int32, device=device)
    kv = PagedKv(batch.keys, batch.values, tables, lengths)
    shape = AttentionShape(0.125)
    starts = batch.row_starts
    found = paged_decode(batch.q, kv, starts, shape, max_rows=1, max_length=36)
    logits = exact_logits(batch, 0, scale=0.125)
    for head in range(2):
        seen = torch.zeros(100, dtype=torch.bool, device=device)
        for page in pages[head].tolist():
            seen[16 * page : 16 * page + 16] = True
        out, lse2 = exact_attention(logits.masked_fill(~seen, -torch.inf), batch.gathered(0)[1])
        of = slice(2 * head, 2 * head + 2)
        torch.testing.assert_close(found.out[:, of].double(), out[:, of], rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(found.lse2[:, of].double(), lse2[:, of], rtol=0, atol=1e-3)


def test_what_cannot_be_answered_is_refused(device: torch.device) -> None:
    batch = paged_batch(device, lengths=[20], rows=[1])
    shape = AttentionShape(0.125)
    with pytest.raises(ValueError, match="queries are torch.float16, keys torch.float32"):
        paged_decode(
            batch.q.half(), kv_of(batch), batch.row_starts, shape, max_rows=1, max_length=20
        )
    with pytest.raises(ValueError, match="int32"):
        PagedKv(batch.keys, batch.values, batch.tables.long(), batch.lengths)
    with pytest.raises(ValueError, match="power of two"):
        PagedKv(batch.keys[:, :12], batch.values[:, :12], batch.tables, batch.lengths)
    with pytest.raises(ValueError, match="window is 0"):
        AttentionShape(0.125, window=0)


def test_pools_may_be_larger_than_a_32_bit_number_counts(device: torch.device) -> None:
    """Most of these 4 GiB are never touched, so on a CPU they need not exist."""
    small = paged_batch(device, lengths=[20], rows=[1], dtype=torch.float16)
    apart = 2**31 // 2 + 16  # elements between blocks: the third one begins behind 2³¹
    pool = torch.empty(2 * apart + 16 * 64, dtype=torch.float16, device=device)
    far = torch.as_strided(pool, (3, 16, 1, 64), (apart, 64, 64, 1))
    blocks = small.tables[0].long()
    far[[2, 1]] = small.keys[blocks]
    tables = torch.tensor([[2, 1]], dtype=torch.int32, device=device)
    starts, shape = small.row_starts, AttentionShape(0.125)
    order = torch.tensor([[0, 1]], dtype=torch.int32, device=device)
    near = PagedKv(small.keys[blocks], small.keys[blocks], order, small.lengths)
    wide = PagedKv(far, far, tables, small.lengths)
    for kv in (near, wide):
        found = paged_decode(small.q, kv, starts, shape, max_rows=1, max_length=20)
        chunk = paged_prefill(small.q, kv, starts, shape, max_rows=1)
        assert torch.equal(found.out, chunk.out)
    expected = paged_decode(small.q, near, starts, shape, max_rows=1, max_length=20)
    assert torch.equal(found.out, expected.out)
