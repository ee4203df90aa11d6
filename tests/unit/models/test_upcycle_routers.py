"""Routers do on the rows they were made from what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych.models.upcycle.routers import expert_shares, popular_router, zipf_shares
from triptych.models.upcycle.split import divide_neurons


def rows_off_centre() -> Tensor:
    """[512, 48]: as normed rows of a language model, far from centred, some coordinates large."""
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(512, 48, generator=source) + 2 * torch.randn(48, generator=source)
    return rows * torch.linspace(0.1, 4.0, 48)


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (4, 1), (60, 4), (3, 3)])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_popularity_is_as_asked(num_experts: int, top_k: int, skew: float) -> None:
    rows = rows_off_centre()
    source = torch.Generator().manual_seed(1)
    router = popular_router(rows, num_experts, top_k, skew, source)
    found = expert_shares(rows @ router.T, top_k).sort(descending=True).values
    torch.testing.assert_close(found, zipf_shares(num_experts, top_k, skew), rtol=0.1, atol=0.02)


def test_rows_differ_in_what_they_choose() -> None:
    rows = rows_off_centre()
    router = popular_router(rows, 8, 2, 1.0, torch.Generator().manual_seed(1))
    pairs = (rows @ router.T).topk(2, dim=1).indices.sort(dim=1).values
    assert len(pairs.unique(dim=0)) > 20


def test_weights_of_the_chosen_are_neither_equal_nor_all_one() -> None:
    rows = rows_off_centre()
    router = popular_router(rows, 8, 2, 0.0, torch.Generator().manual_seed(1))
    best = (rows @ router.T).topk(2, dim=1).values.softmax(1)[:, 0]
    assert 0.55 < best.mean() < 0.85


@pytest.mark.parametrize("skew", [0.0, 0.7, 3.0, 10.0])
def test_no_share_is_more_than_everybody(skew: float) -> None:
    shares = zipf_shares(8, 2, skew)
    assert shares.sum() == pytest.approx(2)
    assert shares.max() <= 0.98 + 1e-6 and shares.min() > 0
    assert torch.equal(shares, shares.sort(descending=True).values)
    assert torch.equal(zipf_shares(8, 8, skew), torch.ones(8))


def test_parts_are_even_and_keep_similar_neurons_together() -> None:
    source = torch.Generator().manual_seed(0)
    directions = torch.randn(4, 32, generator=source)
    kinds = torch.arange(40) % 4
    gate = directions[kinds] + 0.1 * torch.randn(40, 32, generator=source)
    parts = divide_neurons(gate, 4, source)
    assert parts.bincount().tolist() == [10] * 4
    same_kind = kinds[:, None] == kinds
    same_part = parts[:, None] == parts
    assert (same_kind == same_part).float().mean() > 0.8


@pytest.mark.parametrize("num_parts", [1, 3, 7, 40])
def test_parts_differ_by_one_neuron_at_most(num_parts: int) -> None:
    source = torch.Generator().manual_seed(0)
    sizes = divide_neurons(torch.randn(40, 8, generator=source), num_parts, source).bincount()
    assert len(sizes) == num_parts and sizes.max() - sizes.min() <= 1
