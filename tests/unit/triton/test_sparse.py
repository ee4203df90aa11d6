"""NSA's branches, DSA's indexer and the choice of what is read, against plain torch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from triptych_kernels import nsa_attention, reference_sparse
from triptych_kernels.reference_sparse import NsaShape
from triptych_kernels.triton import indexer, nsa, top_k

SHAPE = NsaShape(length=8, stride=4, selected=16, initial=1, local=2)
KV_HEADS, DIM, CHOSEN, BLOCKS = 2, 24, 5, 27
SCALE = DIM**-0.5
DTYPES = [torch.float32, torch.bfloat16]


class Rows(NamedTuple):
    """Five rows of two sequences, from one that sees no compressed block to one that sees many."""

    q: Tensor
    keys: Tensor  # compressed
    values: Tensor
    starts: Tensor
    positions: Tensor

    @staticmethod
    def random(dtype: torch.dtype, device: torch.device) -> Rows:
        chance = torch.Generator().manual_seed(6)
        q = torch.randn(5, 3 * KV_HEADS, DIM, generator=chance)  # a group of 3: padded rows
        keys, values = torch.randn(2, 9 + 102, KV_HEADS, DIM, generator=chance)
        starts, positions = torch.tensor([[0, 0, 0, 9, 9], [3, 7, 40, 200, 411]]).int()
        tensors = (q.to(dtype), keys.to(dtype), values.to(dtype), starts, positions)
        return Rows(*(x.to(device) for x in tensors))

    def cpu(self) -> Rows:
        return Rows(*(x.cpu() for x in self))


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.cpu(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compressed_blocks_are_attended_to_and_score_the_blocks_they_cover(
    dtype: torch.dtype, device: torch.device
) -> None:
    rows = Rows.random(dtype, device)
    q, keys, _, starts, positions = plain = rows.cpu()
    out, lse = nsa.compressed_attention(*rows, SHAPE, SCALE)
    expected, expected_lse = reference_sparse.compressed_attention(*plain, SHAPE, SCALE)
    assert_near(out, expected, dtype)
    assert_near(lse, expected_lse, torch.float32)
    assert (out[0] == 0).all() and (lse[0] == -torch.inf).all(), "nothing is seen yet"
    scores = nsa.block_scores(
        rows.q, rows.keys, lse, rows.starts, rows.positions, SHAPE, SCALE, BLOCKS
    )
    wanted = reference_sparse.block_scores(
        q, keys, expected_lse, starts, positions, SHAPE, SCALE, BLOCKS
    )
    assert_near(scores, wanted, torch.float32)
    shares = wanted[4][wanted[4].isfinite()].sum() / KV_HEADS
    assert 0 < shares < 3 * SHAPE.length // SHAPE.stride, "no attention is given twice"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chosen_blocks_are_read_from_pages(dtype: torch.dtype, device: torch.device) -> None:
    """Values lie transposed; a list has room left; a row reads nothing behind its position."""
    chance = torch.Generator().manual_seed(7)
    rows = Rows.random(dtype, device)
    keys = torch.randn(60, 8, KV_HEADS, DIM, generator=chance).to(dtype)
    values = torch.randn(60, KV_HEADS, DIM, 8, generator=chance).to(dtype).permute(0, 3, 1, 2)
    tables = torch.stack([torch.randperm(60, generator=chance)[:52] for _ in range(2)]).int()
    sequences = torch.tensor([0, 0, 0, 1, 1], dtype=torch.int32)
    scores = torch.rand(5, KV_HEADS, BLOCKS, generator=chance)
    behind = torch.arange(BLOCKS) > rows.positions.cpu()[:, None, None] // SHAPE.selected
    chosen = reference_sparse.select_best(scores.masked_fill(behind, -torch.inf), CHOSEN)
    arguments = (rows.q, keys, values, tables, sequences, rows.positions, chosen)
    on_device = tuple(x.to(device) for x in arguments)
    out, lse = nsa.selected_attention(*on_device, SHAPE.selected, SCALE)
    on_cpu = tuple(x.cpu() for x in arguments)
    expected, expected_lse = reference_sparse.selected_attention(*on_cpu, SHAPE.selected, SCALE)
    assert_near(out, expected, dtype)
    assert_near(lse, expected_lse, torch.float32)
    q, k, v, table, of, at, picked = on_device
    alone, _ = nsa.selected_attention(
        q[4:], k, v, table, of[4:], at[4:], picked[4:], SHAPE.selected, SCALE
    )
    assert torch.equal(alone[0], out[4])


def test_together_they_are_the_attention_of_nsa_models(device: torch.device) -> None:
    """Blocks are averaged and chosen in one size, without overlap. Windows are dense."""
    tokens, size, chosen, at = 150, 16, 4, torch.tensor([0, 15, 31, 80, 149])
    chance = torch.Generator().manual_seed(10)
    q, gates = (torch.randn(tokens, 3 * KV_HEADS, n, generator=chance) for n in (DIM, 3))
    pools = torch.randn(2, 20, 8, KV_HEADS, DIM, generator=chance)
    pages = torch.randperm(20, generator=chance)[:19]
    expected = nsa_attention(
        q, *pools, pages, 0, gates, block_tokens=size, top_k=chosen, window=0, scale=SCALE
    )
    shape = NsaShape(length=size, stride=size, selected=size)
    count = tokens // size
    means = (x[pages].flatten(0, 1)[: count * size].unflatten(0, (count, size)) for x in pools)
    keys, values = (x.mean(1).contiguous().to(device) for x in means)
    rows, positions = q[at].to(device), at.int().to(device)
    starts = torch.zeros_like(positions)
    seen, lse = nsa.compressed_attention(rows, keys, values, starts, positions, shape, SCALE)
    scores = nsa.block_scores(rows, keys, lse, starts, positions, shape, SCALE, count + 1)
    picked = top_k.select_best(scores.flatten(0, 1), chosen).view(len(at), KV_HEADS, chosen)
    table = pages[None].int().to(device)
    kept = (x.to(device) for x in pools)
    read, _ = nsa.selected_attention(rows, *kept, table, starts, positions, picked, size, SCALE)
    of_means, of_chosen, _ = gates[at].to(device).split(1, dim=-1)
    assert_near(seen * of_means + read * of_chosen, expected[at], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_indexer_scores_tokens_as_the_reference(
    dtype: torch.dtype, device: torch.device
) -> None:
    """A row that sees nothing, one that sees one token, others."""
    chance = torch.Generator().manual_seed(8)
    q, keys = (torch.randn(*n, 32, generator=chance).to(dtype) for n in ((5, 16), (300,)))
    weights = torch.randn(5, 16, generator=chance)
    starts, ends = torch.tensor([[0, 0, 10, 10, 299], [0, 1, 200, 300, 300]]).int()
    on_device = (x.to(device) for x in (q, weights, keys, starts, ends))
    logits = indexer.index_logits(*on_device, 290)
    expected = reference_sparse.index_logits(q, weights, keys, starts, ends, 290)
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 7, 200])
def test_the_best_places_are_chosen_with_ties_as_they_come(
    k: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_k, "TILE", 128)
    scores = torch.randn(5, 150, generator=torch.Generator().manual_seed(9)).round(decimals=1)
    scores[1], scores[2, 5:], scores[3, 7], scores[4] = -torch.inf, -torch.inf, torch.nan, 1.0
    chosen = top_k.select_best(scores.to(device), k)
    assert torch.equal(chosen.cpu(), reference_sparse.select_best(scores, k))
