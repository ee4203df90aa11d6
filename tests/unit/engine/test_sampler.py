"""Penalties, bias and log-probabilities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from triptych.engine.sampler import Sampler, shape_logits
from triptych.engine.sequence import Sequence
from triptych.request import SamplingParams

PARAMS = SamplingParams(seed=3, max_tokens=10, temperature=0.0)


def sequence_of(prompt: list[int], output: list[int], params: SamplingParams) -> Sequence:
    sequence = Sequence(
        request_id="r", tokens=list(prompt), root=b"", block_tokens=16, params=params
    )
    for token in output:
        sequence.append(token)
    return sequence


def shaped(params: SamplingParams) -> list[float]:
    sequence = sequence_of([0, 1], [1, 2, 2], params)
    return shape_logits(torch.tensor([1.0, -1.0, 2.0, 0.5]), sequence, params, (3,)).tolist()


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
    assert Sampler([]).draw(raw, [sequence_of([0], [], params)])[0].token_id == 1


def test_without_wishes_the_logits_are_untouched() -> None:
    raw = torch.randn(4)
    assert shape_logits(raw, sequence_of([0], [1], PARAMS), PARAMS, (3,)) is raw


@pytest.mark.parametrize("count", [0, 1, 3])
def test_logprobs_are_those_of_the_raw_logits(count: int) -> None:
    params = replace(PARAMS, temperature=0.5, top_k=1, logprobs=count, logit_bias={3: 100.0})
    raw = torch.tensor([[0.0, 1.0, 3.0, -1.0]])
    (drawn,) = Sampler([]).draw(raw, [sequence_of([0], [], params)])
    assert drawn.token_id == 3 and drawn.logprobs is not None
    expected = torch.log_softmax(raw[0], -1)
    assert drawn.logprobs.logprob == pytest.approx(expected[3].item())
    assert [token for token, _ in drawn.logprobs.top] == [2, 1, 0][:count]


def test_a_draw_depends_on_seed_and_position_not_on_batch_mates() -> None:
    params = replace(PARAMS, temperature=1.0)
    raw = torch.zeros(3, 1000)
    sequences = [sequence_of([0] * length, [], params) for length in (4, 5, 4)]
    tokens = [drawn.token_id for drawn in Sampler([]).draw(raw, sequences)]
    assert tokens[0] == tokens[2] != tokens[1]
    other = sequence_of([0] * 4, [], replace(params, seed=4))
    assert Sampler([]).draw(raw[:1], [other])[0].token_id != tokens[0]
