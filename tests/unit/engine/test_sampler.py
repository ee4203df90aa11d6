"""Penalties, bias, log-probabilities, and rows that share a call and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import pytest
import torch

from triptych.engine.sampler import Drawn, Sampler, Spot, shape_logits
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams
from triptych_kernels.sampling import Draw, draw_tokens

PARAMS = SamplingParams(seed=3, max_tokens=10, temperature=0.0)


def sequence_of(prompt: list[int], output: list[int], params: SamplingParams) -> Sequence:
    sequence = Sequence(
        request_id="r", tokens=list(prompt), root=b"", block_tokens=16, params=params
    )
    for token in output:
        sequence.append(token)
    return sequence


def drawn_ids(sampler: Sampler, raw: torch.Tensor, sequences: Seq[Sequence]) -> list[int]:
    return sampler.draw(raw, [Spot(sequence) for sequence in sequences])


def told(raw: torch.Tensor, sequences: Seq[Sequence]) -> list[Drawn]:
    sampler, spots = Sampler([]), [Spot(sequence) for sequence in sequences]
    tokens = sampler.draw(raw, spots)
    return [sampler.tell(*each) for each in zip(tokens, raw, spots, strict=True)]


def shaped(params: SamplingParams) -> list[float]:
    sequence = sequence_of([0, 1], [1, 2, 2], params)
    return shape_logits(torch.tensor([1.0, -1.0, 2.0, 0.5]), Spot(sequence), params, (3,)).tolist()


def test_presence_and_frequency_count_the_output_only() -> None:
    assert shaped(replace(PARAMS, presence_penalty=0.5)) == [1.0, -1.5, 1.5, 0.5]
    assert shaped(replace(PARAMS, frequency_penalty=0.5)) == [1.0, -1.5, 1.0, 0.5]


def test_repetition_penalty_covers_prompt_and_output() -> None:
    assert shaped(replace(PARAMS, repetition_penalty=2.0)) == [0.5, -2.0, 1.0, 0.5]


def test_logit_bias_is_added_and_min_tokens_forbids_the_end() -> None:
    assert shaped(replace(PARAMS, logit_bias={3: 2.0})) == [1.0, -1.0, 2.0, 2.5]
    assert shaped(replace(PARAMS, min_tokens=4))[3] == -torch.inf
    assert shaped(replace(PARAMS, min_tokens=3))[3] == 0.5


def test_a_temperature_next_to_zero_is_greedy() -> None:
    params = replace(PARAMS, temperature=1e-40)
    raw = torch.tensor([[1e9, 3e9, 2e9]])
    assert drawn_ids(Sampler([]), raw, [sequence_of([0], [], params)]) == [1]


def test_without_wishes_the_logits_are_untouched() -> None:
    raw = torch.randn(4)
    assert shape_logits(raw, Spot(sequence_of([0], [1], PARAMS)), PARAMS, (3,)) is raw


@pytest.mark.parametrize("count", [0, 1, 3])
def test_logprobs_are_those_of_the_raw_logits(count: int) -> None:
    params = replace(PARAMS, temperature=0.5, top_k=1, logprobs=count, logit_bias={3: 100.0})
    raw = torch.tensor([[0.0, 1.0, 3.0, -1.0]])
    sampler, spot = Sampler([]), Spot(sequence_of([0], [], params))
    drawn = sampler.tell(sampler.draw(raw, [spot])[0], raw[0], spot)
    assert drawn.token_id == 3 and drawn.logprobs is not None
    expected = torch.log_softmax(raw[0], -1)
    assert drawn.logprobs.logprob == pytest.approx(expected[3].item())
    assert [token for token, _ in drawn.logprobs.top] == [2, 1, 0][:count]


def test_a_draw_depends_on_seed_and_position_not_on_batch_mates() -> None:
    params = replace(PARAMS, temperature=1.0)
    raw = torch.zeros(3, 1000)
    sequences = [sequence_of([0] * length, [], params) for length in (4, 5, 4)]
    tokens = drawn_ids(Sampler([]), raw, sequences)
    assert tokens[0] == tokens[2] != tokens[1]
    other = sequence_of([0] * 4, [], replace(params, seed=4))
    assert drawn_ids(Sampler([]), raw[:1], [other]) != tokens[:1]


def mixed_batch(vocab_size: int = 1000) -> tuple[torch.Tensor, list[Sequence]]:
    wishes: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.05, "logit_bias": {3: 2.0}},
        {"temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.2},
        {"temperature": 0.0, "min_tokens": 5},
    )
    params = [replace(PARAMS, **wish) for wish in wishes]
    raw = torch.randn(len(params), vocab_size, generator=torch.Generator().manual_seed(1))
    return raw, [sequence_of([0, 1], [2, 2], each) for each in params]


def test_rows_with_different_wishes_draw_what_each_draws_alone() -> None:
    raw, sequences = mixed_batch()
    sampler = Sampler([5])
    together = drawn_ids(sampler, raw, sequences)
    alone = [drawn_ids(sampler, raw[i : i + 1], [seq])[0] for i, seq in enumerate(sequences)]
    assert together == alone
    transposed = raw.T.contiguous().T
    assert drawn_ids(sampler, transposed, sequences) == together


def test_a_machine_without_native_kernels_draws_the_same_tokens() -> None:
    raw, sequences = mixed_batch()
    plain = Sampler([5], draw_tokens)
    assert drawn_ids(Sampler([5]), raw, sequences) == drawn_ids(plain, raw, sequences)


def test_a_step_is_one_call_and_copies_only_the_rows_that_change() -> None:
    calls: list[Seq[Draw]] = []

    def record(draws: Seq[Draw]) -> list[int]:
        calls.append(draws)
        return [0] * len(draws)

    raw, sequences = mixed_batch()
    drawn_ids(Sampler([5], record), raw, sequences)
    (draws,) = calls
    shared = [
        draw.logits.data_ptr() == row.data_ptr() for draw, row in zip(draws, raw, strict=True)
    ]
    assert shared == [True, True, False, False, False]
    assert [draw.position for draw in draws] == [4] * 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_a_broken_row_is_told_by_its_own_result(
    temperature: float, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    params = replace(PARAMS, temperature=temperature, logprobs=2)
    raw = torch.randn(3, 100)
    sequences = [sequence_of([0], [], params) for _ in raw]
    expected = told(raw, sequences)
    raw[1] = value
    with caplog.at_level(logging.ERROR):
        drawn = told(raw, sequences)
    assert [bool(each.broken) for each in drawn] == [False, True, False]
    assert (drawn[0], drawn[2]) == (expected[0], expected[2])
    assert (drawn[1].token_id, drawn[1].logprobs) == (0, None)
    assert "position 1" in caplog.text


def test_without_rows_nothing_is_drawn() -> None:
    assert Sampler([]).draw(torch.empty(0, 10), []) == []
