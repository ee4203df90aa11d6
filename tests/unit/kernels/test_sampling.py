"""The noise, the filters and the draw, as the torch reference defines them."""

from __future__ import annotations

import math

import torch

from triptych_kernels import filter_logits, gumbel_noise
from triptych_kernels.sampling import (
    NO_TOKEN,
    Draw,
    draw_tokens,
    noise_of_bits,
    token_weights,
)


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


def test_noise_is_rounded_right_where_common_logs_round_it_wrong() -> None:
    """Its exact value, 0.0000631325274298411689…, is 2e-21 below the middle of two float32."""
    (noise,) = noise_of_bits(torch.tensor([6172382])).tolist()
    assert noise == float.fromhex("0x1.08cc08p-14")


def test_noise_is_that_of_the_systems_logs_elsewhere() -> None:
    bits = torch.cat([torch.arange(1000), torch.arange(0, 1 << 24, 997), -torch.arange(1, 1000)])
    bits = bits % (1 << 24)
    u = (bits.double() + 0.5) / 2**24
    assert torch.equal(noise_of_bits(bits), -torch.log(-torch.log(u)).float())


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


def test_top_p_that_a_set_reaches_exactly_keeps_no_more() -> None:
    for count in range(1, 5):
        exact = count / 4
        above = math.nextafter(exact, 2.0)
        assert kept(filter_logits(torch.zeros(4), top_p=exact)) == list(range(count))
        assert len(kept(filter_logits(torch.zeros(4), top_p=above))) == min(count + 1, 4)


def test_top_p_counts_the_mass_that_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(filter_logits(logits, top_p=0.5)) == [0, 1]
    assert kept(filter_logits(logits, top_k=2, top_p=0.5)) == [0], "0.4 is over half of 0.7"


def test_weights_are_the_exponentials() -> None:
    logits = torch.linspace(-30.0, 0.0, 10_001)
    weights = token_weights(logits, logits.max())
    exact = torch.exp(logits.double()) * 2.0**40
    assert ((weights - exact).abs() <= 1.0 + 4e-6 * exact).all()
    assert int(weights[-1]) == 1 << 40
    assert int(token_weights(torch.tensor([-torch.inf]), logits.max())) == 0


def test_min_p_is_relative_to_the_best() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(filter_logits(logits, min_p=0.2)) == [0, 1, 2]


def test_no_filter_changes_nothing() -> None:
    logits = torch.randn(10)
    assert filter_logits(logits) is logits


def test_greedy_takes_the_lowest_id_of_the_greatest() -> None:
    rows = [[1.0, 3.0, 3.0], [-0.0, 0.0, -1.0], [math.nan, 1.0, 2.0], [-math.inf, math.nan, -9.0]]
    assert draw_tokens([Draw(torch.tensor(row)) for row in rows]) == [1, 0, 2, 2]


def test_a_row_without_numbers_draws_nothing_and_harms_nobody() -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([math.nan, -math.inf])
    for temperature in (0.0, 1.0):
        draws = [Draw(good), Draw(bad, temperature, top_k=1, top_p=0.5, min_p=0.1), Draw(good)]
        assert draw_tokens(draws) == [1, NO_TOKEN, 1]


def test_infinity_wins_and_extreme_temperatures_are_greedy_or_uniform() -> None:
    logits = torch.tensor([0.0, 5.0, 4.0, 1.0])
    at = [Draw(logits, 1.0, position=position) for position in range(100)]
    assert set(draw_tokens([draw._replace(temperature=1e-5) for draw in at])) == {1}
    assert set(draw_tokens([draw._replace(temperature=1e300) for draw in at])) == {0, 1, 2, 3}
    logits[2:] = math.inf
    assert set(draw_tokens(at)) == {2}
