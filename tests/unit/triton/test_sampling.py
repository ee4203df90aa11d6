"""Tokens drawn by Triton are those of the torch reference, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from triptych_kernels import sampling as reference
from triptych_kernels.sampling import NO_TOKEN, Draw
from triptych_kernels.triton import filters, sampling
from triptych_kernels.triton.common import NO_FUSION
from triptych_kernels.triton.noise import noise_bits, noise_key, noise_of_bits

FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"top_k": 1},
    {"top_k": 50},
    {"top_p": 0.9},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 200, "top_p": 0.5, "min_p": 0.01},
)


@triton.jit
def noise_kernel(seeds, positions, tokens, noise, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    key = noise_key(tl.load(seeds + tl.program_id(0)), tl.load(positions + tl.program_id(0)))
    tl.store(noise + at, noise_of_bits(noise_bits(key, tl.load(tokens + at))))


@triton.jit
def extremes_kernel(bits, noise, TILE: tl.constexpr):
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    tl.store(noise + at, noise_of_bits(tl.load(bits + at)))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a short row has several slices of several tiles."""
    for module in (filters, sampling):
        monkeypatch.setattr(module, "TILE", 128)
    monkeypatch.setattr(sampling, "SLICE", 256)


@pytest.fixture
def chance() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def draws_of(logits: Tensor, **wishes: Any) -> list[Draw]:
    """A draw for each row, at different positions under different seeds."""
    return [
        Draw(row, seed=(1 << 63) + 977 * number, position=number << 20, **wishes)
        for number, row in enumerate(logits)
    ]


def same_tokens(draws: list[Draw], device: torch.device) -> list[int]:
    on_device = [draw._replace(logits=draw.logits.to(device)) for draw in draws]
    tokens = sampling.draw_tokens(on_device)
    assert tokens == reference.draw_tokens(draws)
    return tokens


def test_noise_is_the_references_to_the_bit(device: torch.device) -> None:
    """Of tokens anywhere in a vocabulary, under any seed, and of the rarest bits."""
    chance = torch.Generator().manual_seed(5)
    seeds, positions = [0, 1, (1 << 64) - 1, 0x9E3779B97F4A7C15], [0, 1 << 40, 7, 1]
    tokens = torch.randint(1 << 20, (4, 256), generator=chance)
    signed = torch.tensor(seeds, dtype=torch.uint64).view(torch.int64).to(device)
    noise = torch.empty(4, 256, device=device)
    places = torch.tensor(positions, device=device)
    noise_kernel[(4,)](signed, places, tokens.int().to(device), noise, TILE=256, **NO_FUSION)
    for row, seed, position, ids in zip(noise.cpu(), seeds, positions, tokens, strict=True):
        assert torch.equal(row, reference.token_noise(seed, position, ids))
    ends = torch.cat([torch.arange(512), (1 << 24) - 1 - torch.arange(512)])
    bits = torch.cat([ends, torch.randint(1 << 24, (1024,), generator=chance)])
    noise = torch.empty(2048, device=device)
    extremes_kernel[(2,)](bits.int().to(device), noise, TILE=1024, **NO_FUSION)
    assert torch.equal(noise.cpu(), reference.noise_of_bits(bits))


@pytest.mark.parametrize("size", [2, 300])
def test_tokens_without_filters_are_the_references(
    size: int, chance: torch.Generator, device: torch.device
) -> None:
    logits = 3 * torch.randn(8, size, generator=chance)
    same_tokens([*draws_of(logits[:6], temperature=0.8), *draws_of(logits[6:])], device)


def test_filters_keep_what_the_reference_keeps_and_its_tokens_are_drawn(
    chance: torch.Generator, device: torch.device
) -> None:
    """With many ties, of which the lower id comes first."""
    logits = torch.randn(len(FILTERS), 150, generator=chance).mul(2).round().div(2)
    logits[1, ::2] = -torch.inf
    draws = draws_of(logits, temperature=1.0)
    draws = [d._replace(**f) for d, f in zip(draws, FILTERS, strict=True)]
    on_device = [draw._replace(logits=draw.logits.to(device)) for draw in draws]
    kept = filters.filter_rows(filters.rows_of(on_device))
    for draw, wishes, last, floor in zip(
        draws, FILTERS, kept.last.tolist(), kept.floor.tolist(), strict=True
    ):
        wanted = reference.filter_logits(draw.logits, **wishes) > -torch.inf
        bits = (draw.logits + 0.0).view(torch.int32).long() & 0xFFFFFFFF
        key = torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
        keys = [(int(k) << 32) | (0xFFFFFFFF - token) for token, k in enumerate(key)]
        stays = torch.tensor([k >= last % (1 << 64) for k in keys]) & ~(draw.logits < floor)
        assert torch.equal(stays & (draw.logits > -torch.inf), wanted), wishes
    same_tokens(draws, device)


def test_odd_rows_are_drawn_from_as_by_the_reference(device: torch.device) -> None:
    """Rows with no finite logit at all, with NaN, with +∞, with one token, with signed zeros."""
    size = 100
    nothing = torch.full((size,), -torch.inf)
    one, infinite, broken = nothing.clone(), torch.zeros(size), torch.zeros(size)
    one[71], infinite[[9, 80]], broken[:50] = -3.0, torch.inf, torch.nan
    zeros = torch.zeros(size)
    zeros[::2] = -0.0
    rows = torch.stack([nothing, one, infinite, broken, zeros])
    for wishes in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.4}):
        tokens = same_tokens(draws_of(rows, **wishes), device)
        assert tokens[:3] == [NO_TOKEN, 71, 9]


def test_a_row_draws_the_same_alone_and_among_others(
    chance: torch.Generator, device: torch.device
) -> None:
    draws = draws_of(torch.randn(3, 150, generator=chance).to(device), temperature=1.0, top_p=0.95)
    together = sampling.draw_tokens(draws)
    assert [sampling.draw_tokens([draw])[0] for draw in draws] == together


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_drawn_from_as_if_they_were_wide(
    dtype: torch.dtype, chance: torch.Generator, device: torch.device
) -> None:
    logits = torch.randn(4, 90, generator=chance).to(dtype)
    wide = draws_of(logits.float(), temperature=0.9, min_p=0.1)
    narrow = draws_of(logits.to(device), temperature=0.9, min_p=0.1)
    assert sampling.draw_tokens(narrow) == reference.draw_tokens(wide)
