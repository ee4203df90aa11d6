"""The noise and the filters."""

from __future__ import annotations

import math

import torch

from triptych_kernels import filter_logits, gumbel_noise


def test_noise_is_a_function_of_seed_position_and_token() -> None:
    noise = gumbel_noise(7, 3, 1000)
    assert torch.equal(gumbel_noise(7, 3, 1000), noise)
    assert torch.equal(gumbel_noise(7, 3, 400), noise[:400]), "a token's noise is its own"
    assert not torch.equal(gumbel_noise(8, 3, 1000), noise)
    assert not torch.equal(gumbel_noise(7, 4, 1000), noise)


PINNED = ["0x1.2555140000000p-1", "0x1.0c23a60000000p+0", "-0x1.7a7ac00000000p-2"]


def test_noise_is_pinned_to_the_bit() -> None:
    """A change of these numbers changes every seeded answer that anybody has stored."""
    assert [value.hex() for value in gumbel_noise(2**64 - 1, 5, 3).tolist()] == PINNED


def test_noise_has_the_gumbel_distribution() -> None:
    noise = torch.cat([gumbel_noise(seed, 0, 50_000) for seed in range(4)]).double()
    assert abs(noise.mean().item() - 0.5772) < 0.01
    assert abs(noise.var().item() - math.pi**2 / 6) < 0.02
    assert abs((noise < 0).double().mean().item() - math.exp(-1)) < 0.005


def test_drawing_follows_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    draws = torch.tensor(
        [int((logits + gumbel_noise(1, position, 4)).argmax()) for position in range(4000)]
    )
    seen = torch.bincount(draws, minlength=4) / 4000
    expected = logits.softmax(-1)
    chi_square = (4000 * (seen - expected) ** 2 / expected).sum().item()
    assert chi_square < 16.3, "p = 0.001 with three degrees of freedom"


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


def test_top_k_keeps_the_k_best_and_breaks_ties_by_id() -> None:
    assert kept(filter_logits(torch.tensor([1.0, 3.0, 2.0, 2.0]), top_k=2)) == [1, 2]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(filter_logits(logits, top_p=0.51)) == [0, 1]
    assert kept(filter_logits(logits, top_p=0.49)) == [0]
    assert kept(filter_logits(logits, top_p=1e-9)) == [0]


def test_min_p_is_relative_to_the_best() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(filter_logits(logits, min_p=0.2)) == [0, 1, 2]


def test_no_filter_changes_nothing() -> None:
    logits = torch.randn(10)
    assert filter_logits(logits) is logits
