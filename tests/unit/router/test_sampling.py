"""Seeds, limits and defaults of a request."""

from __future__ import annotations

from typing import Any

import pytest

from router.sampling import draw_seed, new_tokens, prompt_seed, sampling_params
from router.schema import ChatRequest, CompletionRequest
from triptych.errors import ContextLengthError, RequestError
from triptych.request import choice_seed

MESSAGES = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"prompt": "Hi", **fields})


def params(body: Any, max_tokens: int = 9) -> Any:
    return sampling_params(body, seed=1, max_tokens=max_tokens, vocab_size=100)


def test_a_request_without_a_seed_gets_a_random_one_of_64_bits() -> None:
    seeds = {draw_seed(None) for _ in range(64)}
    assert len(seeds) == 64
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    assert max(seeds) >= 1 << 56


@pytest.mark.parametrize(
    ("given", "drawn"), [(0, 0), (7, 7), (-1, (1 << 64) - 1), ((1 << 64) - 1, (1 << 64) - 1)]
)
def test_a_given_seed_is_taken_modulo_2_to_the_64(given: int, drawn: int) -> None:
    assert draw_seed(given) == drawn


def test_the_first_prompt_keeps_the_seed() -> None:
    assert prompt_seed(42, 0, 3) == 42


def test_all_choices_of_all_prompts_draw_with_different_seeds() -> None:
    seeds = [choice_seed(prompt_seed(42, p, 4), i) for p in range(8) for i in range(4)]
    assert len(set(seeds)) == 32


def test_without_a_limit_the_rest_of_the_context_may_be_generated() -> None:
    assert new_tokens(chat(), 10, 64) == 54


def test_the_newer_name_of_the_limit_counts_too() -> None:
    assert new_tokens(chat(max_completion_tokens=5), 10, 64) == 5
    assert new_tokens(chat(max_tokens=6), 10, 64) == 6


def test_a_prompt_may_fill_the_context_but_for_one_token() -> None:
    assert new_tokens(completion(), 63, 64) == 1
    with pytest.raises(ContextLengthError, match="at most 63 tokens") as raised:
        new_tokens(completion(), 64, 64)
    assert (raised.value.param, raised.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(ContextLengthError) as raised:
        new_tokens(chat(), 64, 64)
    assert raised.value.param == "messages"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_asking_for_more_than_fits_names_the_field_and_what_would_fit(field: str) -> None:
    assert new_tokens(chat(**{field: 54}), 10, 64) == 54
    with pytest.raises(RequestError, match=f"{field}: .* at most 54 tokens") as raised:
        new_tokens(chat(**{field: 55}), 10, 64)
    assert raised.value.param == field


def test_defaults_are_openais() -> None:
    found = params(chat())
    assert (found.temperature, found.top_p, found.top_k, found.min_p) == (1.0, 1.0, 0, 0.0)
    assert not found.penalised
    assert (found.logprobs, found.stop, found.stop_token_ids) == (None, (), ())


def test_null_means_the_default_and_zero_means_zero() -> None:
    assert params(chat(temperature=None, repetition_penalty=None)).temperature == 1.0
    assert params(chat(temperature=0)).temperature == 0.0


@pytest.mark.parametrize("top_k", [-1, 0, None])
def test_all_tokens_are_candidates_in_every_spelling(top_k: int | None) -> None:
    assert params(chat(top_k=top_k)).top_k == 0


def test_logprobs_of_chat_and_completions_mean_the_same_afterwards() -> None:
    assert params(chat(logprobs=True)).logprobs == 0
    assert params(chat(logprobs=True, top_logprobs=3)).logprobs == 3
    assert params(chat(logprobs=False)).logprobs is None
    assert params(completion(logprobs=0)).logprobs == 0
    assert params(completion(logprobs=5)).logprobs == 5


def test_stop_strings_lose_their_duplicates() -> None:
    assert params(chat(stop="x")).stop == ("x",)
    assert params(chat(stop=["x", "y", "x"])).stop == ("x", "y")
    assert params(chat(stop=[])).stop == ()


def test_logit_bias_keys_become_token_ids() -> None:
    assert params(chat(logit_bias={"3": -100, "4": 0.5})).logit_bias == {3: -100.0, 4: 0.5}


@pytest.mark.parametrize(
    ("field", "value"), [("logit_bias", {"100": 1}), ("stop_token_ids", [5, 100])]
)
def test_a_token_outside_of_the_vocabulary_is_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field}: token id 100") as raised:
        params(chat(**{field: value}))
    assert raised.value.param == field


def test_more_minimum_than_maximum_is_refused() -> None:
    assert params(chat(min_tokens=9)).min_tokens == 9
    with pytest.raises(RequestError, match="min_tokens: 10 is more than the 9") as raised:
        params(chat(min_tokens=10))
    assert raised.value.param == "min_tokens"
