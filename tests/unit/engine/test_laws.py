"""The law that tokens are drawn from is that of the draws themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams
from triptych_kernels.cpu.native import native
from triptych_kernels.cpu.sampling import NativeSampling
from triptych_kernels.sampling import Draw, token_law

PARAMS = SamplingParams(seed=0, max_tokens=10, temperature=1.0)
LOGITS = torch.tensor([1.0, 0.5, 0.0, -0.5, 2.0, -1.0])
WISHES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.7, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.8},
    {"min_p": 0.3},
    {"frequency_penalty": 0.7, "repetition_penalty": 1.3, "logit_bias": {3: 2.0}},
    {"min_tokens": 5},
    {"temperature": 0.0},
)


def spot_of(params: SamplingParams) -> Spot:
    sequence = Sequence("r", [1, 4], b"", 16, params=params)
    sequence.append(4)
    return Spot(sequence, (0, 1))


def law_of(params: SamplingParams, logits: Tensor = LOGITS) -> Tensor:
    (law,) = Sampler((4,)).laws(logits[None], [spot_of(params)])
    return law


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_draws_follow_the_law(wish: dict[str, Any]) -> None:
    law = law_of(replace(PARAMS, **wish))
    assert law.sum().item() == pytest.approx(1.0)
    spots = [spot_of(replace(PARAMS, seed=seed, **wish)) for seed in range(4000)]
    drawn = Sampler((4,)).draw(LOGITS.repeat(len(spots), 1), spots)
    seen = torch.bincount(torch.tensor(drawn), minlength=len(LOGITS))
    assert not seen[law == 0].any(), "what the law excludes is never drawn"
    expected = law * len(drawn)
    chi_square = ((seen - expected)[law > 0] ** 2 / expected[law > 0]).sum().item()
    assert chi_square < 25.8, "p = 1e-4 with five degrees of freedom"


def test_a_greedy_law_and_one_beside_infinity_are_certain() -> None:
    ties = torch.tensor([1.0, 3.0, 3.0, torch.nan, 0.0, 0.0])
    assert law_of(replace(PARAMS, temperature=0.0), ties).tolist() == [0, 1, 0, 0, 0, 0]
    ties[2] = torch.inf
    assert law_of(replace(PARAMS, top_p=0.5), ties).tolist() == [0, 0, 1, 0, 0, 0]


def test_a_broken_row_has_no_law() -> None:
    for wish in ({}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.5}):
        assert not law_of(replace(PARAMS, **wish), torch.full((6,), torch.nan)).any()


@pytest.mark.parametrize("top_k", [0, 1, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_the_native_law_is_the_reference_s(top_k: int, top_p: float, min_p: float) -> None:
    library = native()
    if library is None:
        pytest.skip("no native kernels here")
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(1))
    draw = Draw(logits, 0.8, top_k, top_p, min_p)
    law, expected = NativeSampling(library).token_law(draw), token_law(draw)
    assert torch.equal(law > 0, expected > 0)
    torch.testing.assert_close(law, expected)
