"""Log-probabilities in the shapes of OpenAI's two APIs."""

from __future__ import annotations

import math

from router.logprobs import chat_logprobs, completion_logprobs
from router.text import Piece
from triptych.request import TokenLogprobs
from triptych.tokenizer import Tokenizer


def piece(*logprobs: TokenLogprobs, offsets: tuple[int, ...] = ()) -> Piece:
    token_ids = tuple(entry.token_id for entry in logprobs)
    return Piece(0, "", token_ids, logprobs, offsets or tuple(range(len(logprobs))), None, None)


def test_chat_entries_hold_text_bytes_and_the_best(tokenizer: Tokenizer) -> None:
    a, the = tokenizer.encode("a the")
    found = chat_logprobs(tokenizer, [piece(TokenLogprobs(the, -0.25, ((a, -0.1), (the, -0.25))))])
    assert found is not None
    assert found.model_dump()["content"] == [
        {
            "token": " the",
            "logprob": -0.25,
            "bytes": list(b" the"),
            "top_logprobs": [
                {"token": "a", "logprob": -0.1, "bytes": [97]},
                {"token": " the", "logprob": -0.25, "bytes": list(b" the")},
            ],
        }
    ]


def test_completion_entries_are_columns(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("ab")
    pieces = [
        piece(TokenLogprobs(a, -0.5, ((a, -0.5),)), offsets=(0,)),
        piece(TokenLogprobs(b, -2.0, ((a, -0.1),)), offsets=(1,)),
    ]
    found = completion_logprobs(tokenizer, pieces, top=True)
    assert found is not None
    assert found.tokens == ["a", "b"]
    assert found.token_logprobs == [-0.5, -2.0]
    assert found.text_offset == [0, 1]
    # The chosen token is there even if it is not among the best.
    assert found.top_logprobs == [{"a": -0.5}, {"a": -0.1, "b": -2.0}]


def test_without_a_best_list_there_is_none(tokenizer: Tokenizer) -> None:
    found = completion_logprobs(tokenizer, [piece(TokenLogprobs(5, -0.5))], top=False)
    assert found is not None
    assert found.top_logprobs is None


def test_half_a_character_is_spelled_in_bytes(tokenizer: Tokenizer) -> None:
    first, second = tokenizer.encode("é")
    found = completion_logprobs(
        tokenizer, [piece(TokenLogprobs(first, -1), TokenLogprobs(second, -1))], top=False
    )
    assert found is not None
    assert found.tokens == [r"bytes:\xc3", r"bytes:\xa9"]


def test_minus_infinity_becomes_a_number_that_json_has(tokenizer: Tokenizer) -> None:
    found = chat_logprobs(tokenizer, [piece(TokenLogprobs(5, -math.inf, ((6, -math.inf),)))])
    assert found is not None
    assert found.content[0].logprob == found.content[0].top_logprobs[0].logprob == -9999.0


def test_nothing_asked_nothing_sent(tokenizer: Tokenizer) -> None:
    assert chat_logprobs(tokenizer, [piece()]) is None
    assert completion_logprobs(tokenizer, [piece()], top=True) is None
