"""Pages are scored by bounds of their keys, and the best ones are chosen, ascending and exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych.testing.paged_attention import PagedBatch, paged_batch
from triptych_kernels.triton.attention import PagedKv
from triptych_kernels.triton.page_choice import select_pages
from triptych_kernels.triton.pages import page_bounds, quest_scores


def bounds_of(batch: PagedBatch) -> tuple[Tensor, Tensor]:
    blocks, page, heads, dim = batch.keys.shape
    low = torch.zeros(blocks, heads, dim, dtype=batch.keys.dtype, device=batch.q.device)
    high = torch.zeros_like(low)
    for length, table in zip(batch.lengths.tolist(), batch.tables, strict=True):
        count = -(-length // page)
        filled = torch.full((count,), page, dtype=torch.int32, device=low.device)
        filled[-1] = length - (count - 1) * page
        page_bounds(batch.keys, table[:count].contiguous(), filled, low, high)
    return low, high


@pytest.mark.parametrize("largest", [False, True], ids=["sum", "largest"])
@pytest.mark.parametrize("dtype, group", [(torch.float32, 3), (torch.bfloat16, 8)])
def test_a_page_scores_what_its_best_key_could(
    dtype: torch.dtype, group: int, largest: bool, device: torch.device
) -> None:
    lengths = [150, 20]
    batch = paged_batch(
        device, dtype=dtype, dim=80, kv_heads=2, group=group, lengths=lengths, rows=[1, 1]
    )
    kv = PagedKv(batch.keys, batch.values, batch.tables, batch.lengths)
    found = quest_scores(batch.q, *bounds_of(batch), kv, largest=largest)
    for sequence, length in enumerate(lengths):
        keys, _ = batch.gathered(sequence)
        q = batch.q[sequence].double().view(2, group, 80)
        for page in range(10):
            if page * 16 >= length:
                assert (found[:, sequence, page] == -torch.inf).all()
                continue
            here = keys[16 * page : 16 * page + 16]
            least, most = here.amin(0)[:, None], here.amax(0)[:, None]
            scores = torch.maximum(q * least, q * most).sum(-1)
            exact = scores.amax(1) if largest else scores.sum(1)
            torch.testing.assert_close(
                found[:, sequence, page].double(), exact, rtol=1e-4, atol=1e-3
            )


def chosen(scores: Tensor, length: int, wanted: int, **how: int) -> tuple[list[int], int]:
    """Of scores [P] of one head of one sequence. Its blocks are numbered backwards from 100."""
    device, pages = scores.device, len(scores)
    pool = torch.zeros(1, 16, 1, 16, device=device)
    table = 100 - torch.arange(pages, dtype=torch.int32, device=device)[None]
    lengths = torch.tensor([length], dtype=torch.int32, device=device)
    kv = PagedKv(pool, pool, table, lengths)
    k = torch.tensor([wanted], dtype=torch.int32, device=device)
    tables, tokens = select_pages(scores.view(1, 1, -1), kv, k, **{"width": 8, **how})
    count = -(-int(tokens) // 16)
    return (100 - tables[0, 0, :count]).tolist(), int(tokens)


def test_the_best_pages_are_chosen_ascending(device: torch.device) -> None:
    scores = torch.randn(40, generator=torch.Generator().manual_seed(1)).to(device)
    pages, tokens = chosen(scores, 40 * 16 - 5, 6, sinks=2, recent=1)
    best = scores[2:39].topk(3).indices + 2
    assert pages == sorted([0, 1, 39, *best.tolist()])
    assert tokens == 6 * 16 - 5


def test_more_than_one_round_of_pages_is_looked_at(device: torch.device) -> None:
    scores = torch.randn(2100, generator=torch.Generator().manual_seed(2)).to(device)
    pages, _ = chosen(scores, 2100 * 16, 8, sinks=0, recent=1)
    assert pages == [*sorted(scores[:2099].topk(7).indices.tolist()), 2099]


def test_ties_go_to_the_first_and_what_is_no_number_is_kept(device: torch.device) -> None:
    scores = torch.tensor([0.0, 2, 2, -1, 2, torch.nan, 2, 0, -torch.inf, 1], device=device)
    assert chosen(scores, 160, 5, sinks=1)[0] == [0, 1, 2, 5, 9]


def test_scores_below_zero_and_of_both_zeros_have_their_order(device: torch.device) -> None:
    scores = torch.tensor([-3.0, -0.5, -2, -torch.inf, -0.25, -1], device=device)
    assert chosen(scores, 96, 3, sinks=0)[0] == [1, 4, 5]


@pytest.mark.parametrize("length, wanted", [(100, 7), (100, 8), (5, 3), (16, 1), (0, 4)])
def test_a_short_sequence_is_read_whole(length: int, wanted: int, device: torch.device) -> None:
    pages, tokens = chosen(torch.zeros(7, device=device), length, wanted)
    assert pages == list(range(-(-length // 16))) and tokens == length


def test_the_last_page_must_be_read(device: torch.device) -> None:
    with pytest.raises(ValueError, match="at least one recent"):
        chosen(torch.zeros(7, device=device), 100, 3, recent=0)
