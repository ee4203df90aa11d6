"""Page selection as bench.sparse measures it."""

import torch

from bench.sparse_pages import RECENT, chosen_pages, page_bounds, read_pages

PAGE, LENGTH, KV_HEADS, HEADS, DIM = 16, 200, 2, 6, 8


def made() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(3)
    query = torch.randn(HEADS, DIM, generator=dice) * 2
    keys = torch.randn(LENGTH, KV_HEADS, DIM, generator=dice)
    return query, keys, torch.randn(LENGTH, KV_HEADS, DIM, generator=dice)


def test_no_key_of_a_page_exceeds_its_bound() -> None:
    query, keys, _ = made()
    bounds = page_bounds(query, keys, PAGE)
    logits = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(HEADS // KV_HEADS, dim=1))
    for page, run in enumerate(logits.split(PAGE, dim=1)):
        assert (run <= bounds[:, page, None] + 1e-5).all()


def test_the_first_and_the_recent_pages_are_always_read() -> None:
    query, keys, _ = made()
    chosen = chosen_pages(page_bounds(query, keys, PAGE), KV_HEADS, 5)
    assert chosen[:, 0].all()
    assert chosen[:, -RECENT:].all()
    assert (chosen.sum(dim=1) == 5).all()


def test_all_pages_chosen_are_dense_attention_with_an_empty_certificate() -> None:
    query, keys, values = made()
    bounds = page_bounds(query, keys, PAGE)
    chosen = chosen_pages(bounds, KV_HEADS, bounds.shape[1])
    found = read_pages(query, keys, values, chosen, bounds, PAGE)
    group = HEADS // KV_HEADS
    logits = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(group, dim=1)) * DIM**-0.5
    dense = torch.einsum(
        "hn,nhd->hd", logits.softmax(dim=1), values.repeat_interleave(group, dim=1)
    )
    assert torch.allclose(found.out, dense, atol=1e-6)
    assert (found.omitted == 0).all()


def test_the_certificate_covers_the_softmax_of_what_was_not_read() -> None:
    query, keys, values = made()
    bounds = page_bounds(query, keys, PAGE)
    chosen = chosen_pages(bounds, KV_HEADS, 4)
    found = read_pages(query, keys, values, chosen, bounds, PAGE)
    group = HEADS // KV_HEADS
    logits = torch.einsum("hd,nhd->hn", query, keys.repeat_interleave(group, dim=1)) * DIM**-0.5
    seen = chosen.repeat_interleave(group, dim=0).repeat_interleave(PAGE, dim=1)[:, :LENGTH]
    weights = logits.softmax(dim=1)
    left = (weights * ~seen).sum(dim=1) / (weights * seen).sum(dim=1)
    assert (left > 0).all()
    assert (left <= found.omitted * (1 + 1e-5)).all()
