"""Natively drawn tokens are those of the torch reference, bit for bit, on every kind of CPU."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych_kernels.cpu.build import BuildError, default_cache
from triptych_kernels.cpu.levels import Level, usable_levels
from triptych_kernels.cpu.native import Library, load_library
from triptych_kernels.cpu.sampling import NativeSampling
from triptych_kernels.sampling import (
    NO_TOKEN,
    Draw,
    draw_tokens,
    filter_logits,
    inverse_temperature,
    noise_of_bits,
    token_noise,
)

SIZES = (2, 33, 1000, 49152, 151936)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 2},
    {"top_k": 50},
    {"top_k": 10**12},
    {"top_p": 0.9},
    {"top_p": 0.0},
    {"top_p": 0.9999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 700, "top_p": 0.5, "min_p": 0.01},
    {"top_p": 0.95, "min_p": 0.02},
)


@pytest.fixture(scope="session", params=usable_levels(), ids=lambda level: level.name)
def library(request: pytest.FixtureRequest) -> Library:
    level: Level = request.param
    try:
        return load_library(level, default_cache())
    except BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def native(library: Library) -> NativeSampling:
    return NativeSampling(library)


def logits_like(kind: str, vocab_size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(vocab_size, generator=generator) * 3
    hidden = torch.rand(vocab_size, generator=generator)
    match kind:
        case "ties":
            return (logits * 2).round() / 2
        case "equal":
            return torch.full((vocab_size,), -1.5)
        case "zeros of both signs":
            return torch.where(hidden < 0.5, 0.0, -0.0)
        case "masked":
            return torch.where(hidden < 0.9, -torch.inf, logits)
        case "broken":
            return torch.where(hidden < 0.5, torch.nan, logits)
        case "huge":
            return logits * 1e28
        case "coarse":  # float32 steps of 16 and more: noise is rounded away or up
            return logits + 3e8
        case "tiny":
            return logits * 1e-39
    return logits


KINDS = (
    *("plain", "ties", "equal", "zeros of both signs", "masked", "broken"),
    *("huge", "coarse", "tiny"),
)


def draws_of(vocab_size: int, kind: str, temperatures: tuple[float, ...]) -> list[Draw]:
    logits = logits_like(kind, vocab_size)
    return [
        Draw(logits, temperature, seed=seed * 0x123456789ABCDEF, position=seed, **filters)
        for seed, (filters, temperature) in enumerate(itertools.product(FILTERS, temperatures))
    ]


@functools.cache
def reference_noise(first: int, count: int) -> Tensor:
    return noise_of_bits(torch.arange(first, first + count))


# The second range holds 6172382, whose noise is so near to the middle of two float32 numbers that
# common math libraries round it to the wrong one.
@pytest.mark.parametrize("first", [0, 6_000_000, 11_000_000, (1 << 24) - (1 << 20)])
def test_noise_is_the_references_for_millions_of_its_bits(
    native: NativeSampling, first: int
) -> None:
    assert torch.equal(native.noise_of_bits(first, 1 << 20), reference_noise(first, 1 << 20))


def test_noise_depends_on_seed_position_and_token_as_in_the_reference(
    native: NativeSampling,
) -> None:
    for seed, position in ((0, 0), (7, 3), (2**64 - 1, 5), (1 << 63, 1 << 31)):
        for ids in (torch.arange(1000), torch.tensor([151935, 3, 0, 49151, 3])):
            noise = native.token_noise(seed, position, ids)
            assert torch.equal(noise, token_noise(seed, position, ids))


@functools.cache
def small_draws() -> tuple[list[Draw], list[int]]:
    """Thousands of draws and their tokens."""
    draws = [
        draw._replace(position=position)
        for kind in KINDS
        for draw in draws_of(33, kind, (0.0, 0.3, 1.0, 2.0))
        for position in range(8)
    ]
    return draws, draw_tokens(draws)


def test_thousands_of_tokens_are_the_references(native: NativeSampling) -> None:
    draws, tokens = small_draws()
    assert len(draws) > 3000
    assert native.draw_tokens(draws) == tokens


@functools.cache
def sized_draws(vocab_size: int, kind: str) -> tuple[list[Draw], list[int]]:
    temperatures = (0.0, 0.7) if vocab_size > 10_000 else (0.0, 0.01, 0.7, 1.0, 100.0)
    draws = draws_of(vocab_size, kind, temperatures)
    return draws, draw_tokens(draws)


@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_tokens_are_the_references_for_every_size(
    native: NativeSampling, vocab_size: int, kind: str
) -> None:
    draws, tokens = sized_draws(vocab_size, kind)
    assert native.draw_tokens(draws) == tokens


def kept_by_reference(draw: Draw) -> Tensor:
    logits = torch.where(draw.logits.isnan(), -torch.inf, draw.logits)
    kept = filter_logits(
        logits * inverse_temperature(draw.temperature),
        top_k=draw.top_k,
        top_p=draw.top_p,
        min_p=draw.min_p,
    )
    return (kept > -torch.inf).nonzero().flatten()


@functools.cache
def kept_sets(vocab_size: int, kind: str) -> list[tuple[Draw, Tensor]]:
    return [(draw, kept_by_reference(draw)) for draw in draws_of(vocab_size, kind, (1.3,))]


@pytest.mark.parametrize(
    ("vocab_size", "kind"),
    [
        *itertools.product((2, 33, 1000), KINDS),
        *itertools.product((49152, 151936), ("plain", "ties", "equal")),
    ],
)
def test_the_filters_keep_what_the_reference_keeps(
    native: NativeSampling, vocab_size: int, kind: str
) -> None:
    """Not almost: mass is counted in whole numbers, so no order of summation decides a boundary."""
    for draw, kept in kept_sets(vocab_size, kind):
        assert torch.equal(native.kept_tokens(draw), kept), draw[1:]


def test_top_k_of_nearly_all_tokens_drops_the_last_one(native: NativeSampling) -> None:
    logits = logits_like("plain", 1000)
    kept = native.kept_tokens(Draw(logits, 1.0, top_k=999)).tolist()
    assert set(range(1000)) - set(kept) == {int(logits.argmin())}


def test_ties_at_a_cut_fall_to_the_lower_id(native: NativeSampling) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, -0.0, 0.0, 2.0])
    assert native.kept_tokens(Draw(logits, 1.0, top_k=3)).tolist() == [1, 2, 3]
    equal = torch.zeros(1000)
    equal[::2] = -0.0
    assert native.kept_tokens(Draw(equal, 1.0, top_k=7)).tolist() == list(range(7))
    assert native.kept_tokens(Draw(equal, 1.0, top_p=0.25)).tolist() == list(range(250))
    assert native.kept_tokens(Draw(equal, 1.0, min_p=1.0)).tolist() == list(range(1000))


def test_top_p_that_a_set_reaches_exactly_keeps_no_more(native: NativeSampling) -> None:
    equal = torch.zeros(8)
    for count in range(1, 9):
        exact = count / 8
        above = math.nextafter(exact, 2.0)
        assert len(native.kept_tokens(Draw(equal, 1.0, top_p=exact))) == count
        assert len(native.kept_tokens(Draw(equal, 1.0, top_p=above))) == min(count + 1, 8)


def test_greedy_takes_the_lowest_id_of_the_greatest(native: NativeSampling) -> None:
    for vocab_size in SIZES:
        logits = logits_like("ties", vocab_size)
        greatest = int((logits == logits.max()).nonzero()[0])
        assert native.draw_tokens([Draw(logits)]) == [greatest]
    assert native.draw_tokens([Draw(torch.tensor([-0.0, 0.0]))]) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_numbers_draws_nothing_and_harms_nobody(
    native: NativeSampling, temperature: float
) -> None:
    good = logits_like("plain", 1000)
    alone = native.draw_tokens([Draw(good, temperature)])
    for bad in (torch.full((1000,), torch.nan), torch.full((1000,), -torch.inf)):
        for filters in FILTERS:
            drawn = Draw(bad, temperature, **filters)
            beside = [Draw(good, temperature), drawn, Draw(good, temperature)]
            assert native.draw_tokens(beside) == [*alone, NO_TOKEN, *alone]


def test_no_number_never_wins(native: NativeSampling) -> None:
    logits = torch.full((1000,), torch.nan)
    logits[777] = -1e30
    for temperature, filters in itertools.product((0.0, 1.0), FILTERS):
        draw = Draw(logits, temperature, **filters)
        assert native.draw_tokens([draw]) == [777]


def test_infinity_always_wins(native: NativeSampling) -> None:
    logits = logits_like("plain", 1000)
    logits[[500, 600]] = torch.inf
    draws = [Draw(logits, t, **filters) for t in (0.0, 1.0) for filters in FILTERS]
    assert native.draw_tokens(draws) == draw_tokens(draws) == [500] * len(draws)


def test_extreme_temperatures_are_greedy_or_uniform(native: NativeSampling) -> None:
    logits = logits_like("plain", 33)
    cold = [Draw(logits, 1e-5, position=position) for position in range(100)]
    assert set(native.draw_tokens(cold)) == {int(logits.argmax())}
    hot = [Draw(logits, 1e300, position=position) for position in range(1000)]
    assert len(set(native.draw_tokens(hot))) == 33
    assert native.draw_tokens(hot) == draw_tokens(hot)


@pytest.fixture
def two_threads(library: Library) -> Iterator[None]:
    set_threads = library.bind("tk_set_threads", None, ctypes.c_int)
    set_threads(2)
    yield
    set_threads(1)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", ["plain", "ties"])
def test_tokens_depend_neither_on_threads_nor_on_batch_mates(
    native: NativeSampling, kind: str
) -> None:
    draws, tokens = sized_draws(151936, kind)
    assert native.draw_tokens(draws) == tokens
    assert [native.draw_tokens([draw])[0] for draw in draws] == tokens
    assert native.draw_tokens(draws[::-1]) == tokens[::-1]


@pytest.mark.parametrize("filters", [{}, {"top_k": 12}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_tokens_are_drawn_with_the_probabilities_of_the_filtered_softmax(
    native: NativeSampling, filters: dict[str, Any]
) -> None:
    draw = Draw(logits_like("plain", 50) / 2, 0.8, seed=11, **filters)
    logits = filter_logits(draw.logits * inverse_temperature(0.8), **filters)
    expected = logits.double().softmax(0) * 20_000
    drawn = native.draw_tokens([draw._replace(position=position) for position in range(20_000)])
    seen = torch.bincount(torch.tensor(drawn), minlength=50).double()
    assert seen[expected == 0].sum() == 0
    often = expected >= 5
    chi_square = ((seen - expected) ** 2 / expected)[often].sum().item()
    freedom = int(often.sum()) - 1
    limit = freedom + 3.3 * math.sqrt(2 * freedom) + 6  # above the 0.999 quantile
    assert chi_square < limit


def test_without_rows_there_is_nothing_to_draw(native: NativeSampling) -> None:
    assert native.draw_tokens([]) == []
