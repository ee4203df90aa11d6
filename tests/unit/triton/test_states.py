"""Attention over parts of a context, merged, is attention over the whole."""

from __future__ import annotations

import torch

from triptych.testing.paged_attention import exact_attention, exact_logits, paged_batch
from triptych_kernels.triton.attention import AttentionShape, PagedKv
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.states import cascade_attention, merge_states


def states(device: torch.device, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    out = torch.randn(parts, 3, 2, 24, generator=random)
    return out.to(device), (3 * torch.randn(parts, 3, 2, generator=random)).to(device)


def test_parts_weigh_as_much_as_their_sums(device: torch.device) -> None:
    out, lse2 = states(device, 4)
    merged = merge_states(out, lse2)
    weights = torch.softmax(lse2.double() * torch.log(torch.tensor(2.0)), dim=0)
    exact = (weights[..., None] * out.double()).sum(0)
    torch.testing.assert_close(merged.out.double(), exact, rtol=1e-5, atol=1e-6)
    total = torch.logsumexp(lse2.double() * torch.log(torch.tensor(2.0)), 0)
    torch.testing.assert_close(merged.lse2.double(), total / torch.log(torch.tensor(2.0)).double())


def test_merging_in_two_steps_is_merging_in_one(device: torch.device) -> None:
    out, lse2 = states(device, 4)
    once = merge_states(out, lse2)
    pairs = [merge_states(out[i : i + 2], lse2[i : i + 2]) for i in (0, 2)]
    twice = merge_states(
        torch.stack([of.out for of in pairs]), torch.stack([of.lse2 for of in pairs])
    )
    torch.testing.assert_close(once.out, twice.out)
    torch.testing.assert_close(once.lse2, twice.lse2)


def test_one_part_comes_out_as_it_went_in_and_empty_ones_do_not_show(device: torch.device) -> None:
    out, lse2 = states(device, 3)
    out[0], out[2], lse2[0], lse2[2] = 0, 0, -torch.inf, -torch.inf
    for part in (slice(1, 2), slice(0, 3)):
        merged = merge_states(out[part], lse2[part])
        assert torch.equal(merged.out, out[1]) and torch.equal(merged.lse2, lse2[1])
    empty = merge_states(out[:1], lse2[:1])
    assert not empty.out.any() and (empty.lse2 == -torch.inf).all()


def test_rows_that_see_nothing_are_zero(device: torch.device) -> None:
    batch = paged_batch(device, group=2, lengths=[20], rows=[3])
    nothing = torch.zeros_like(batch.lengths)
    kv = PagedKv(batch.keys, batch.values, batch.tables, nothing)
    starts, shape = batch.row_starts, AttentionShape(0.125)
    found = paged_decode(batch.q, kv, starts, shape, max_rows=3, max_length=0, see_all=True)
    assert not found.out.any() and (found.lse2 == -torch.inf).all()


def test_a_cascade_is_attention_over_prefix_and_suffix(device: torch.device) -> None:
    """Two sequences share the first 48 tokens; both meet their sinks once."""
    batch = paged_batch(device, group=3, lengths=[70, 100], rows=[2, 1])
    batch.tables[1, :3] = batch.tables[0, :3]
    heads = torch.tensor([0.5, 2.0, -1.0], device=device)
    shape = AttentionShape(0.125, softcap=20.0, sinks=heads)
    shared = torch.tensor([48], dtype=torch.int32, device=device)
    prefix = PagedKv(batch.keys, batch.values, batch.tables[:1], shared)
    suffixes = PagedKv(
        batch.keys, batch.values, batch.tables[:, 3:].contiguous(), batch.lengths - 48
    )
    found = cascade_attention(
        batch.q,
        prefix,
        suffixes,
        batch.row_starts,
        shape,
        max_rows=2,
        max_length=52,
        prefix_length=48,
    )
    for sequence in range(2):
        logits = exact_logits(batch, sequence, scale=0.125, softcap=20.0)
        out, lse2 = exact_attention(logits, batch.gathered(sequence)[1], heads)
        rows = batch.rows_of(sequence)
        torch.testing.assert_close(found.out[rows].double(), out, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(found.lse2[rows].double(), lse2, rtol=0, atol=1e-3)
