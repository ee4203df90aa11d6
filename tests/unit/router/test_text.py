"""Tokens of one choice to text: stops trimmed, half characters kept back, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.text import ChoiceText, Piece, StopTrimmer
from triptych.errors import WorkerError
from triptych.request import FinishReason, SamplingParams, TokenDelta, TokenLogprobs
from triptych.stop import StopMatcher
from triptych.tokenizer import Tokenizer


def show(
    tokenizer: Tokenizer,
    deltas: Sequence[Sequence[int]],
    *,
    finish: FinishReason = FinishReason.STOP,
    stop_reason: str | int | None = None,
    **params: tuple[str, ...] | tuple[int, ...],
) -> list[Piece]:
    """The pieces of a choice that arrives in these deltas and ends with the last one."""
    choice = ChoiceText(tokenizer, SamplingParams(seed=1, max_tokens=99, **params), 0)  # type: ignore[arg-type]
    last = len(deltas) - 1
    return [
        choice.push(
            TokenDelta(
                "r",
                0,
                tuple(ids),
                finish_reason=finish if at == last else None,
                stop_reason=stop_reason if at == last else None,
            )
        )
        for at, ids in enumerate(deltas)
    ]


def text_of(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_text_comes_as_soon_as_its_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc")
    pieces = show(tokenizer, [[i] for i in ids], finish=FinishReason.LENGTH)
    assert [piece.text for piece in pieces] == ["a", "b", "c"]


def test_the_end_of_sequence_is_not_shown(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("abc"), tokenizer.eos_token_ids[0]]
    assert text_of(show(tokenizer, [ids])) == "abc"


def test_special_tokens_are_text_where_they_mark_calls(tokenizer: Tokenizer) -> None:
    marker = tokenizer.special_id("<|im_start|>")
    assert marker is not None and tokenizer.special_id("the") is None
    delta = TokenDelta("r", 0, (marker, *tokenizer.encode("a"), tokenizer.eos_token_ids[0]))
    params = SamplingParams(seed=1, max_tokens=99)
    assert ChoiceText(tokenizer, params, 0).push(delta).text == "a"
    assert ChoiceText(tokenizer, params, 0, {marker}).push(delta).text == "<|im_start|>a"


def test_a_stop_token_is_not_shown_when_it_ended_the_choice(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abc")
    pieces = show(tokenizer, [ids], stop_reason=ids[-1], stop_token_ids=(ids[-1],))
    assert text_of(pieces) == "ab"
    pieces = show(tokenizer, [ids], finish=FinishReason.LENGTH, stop_token_ids=(ids[-1],))
    assert text_of(pieces) == "abc"


def test_a_stop_string_is_cut_off_with_what_follows_in_its_token(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("ab the")
    assert len(ids) == 3
    pieces = show(tokenizer, [[i] for i in ids], stop_reason=" t", stop=(" t",))
    assert text_of(pieces) == "ab"


def test_what_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aENb")
    pieces = show(tokenizer, [[i] for i in ids], finish=FinishReason.LENGTH, stop=("END",))
    assert [piece.text for piece in pieces] == ["a", "", "", "ENb"]


def test_what_was_held_back_comes_when_the_choice_ends_otherwise(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aEN")
    pieces = show(tokenizer, [ids], finish=FinishReason.LENGTH, stop=("END",))
    assert text_of(pieces) == "aEN"


def test_a_stop_string_that_the_home_passed_over_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aXbXc")
    pieces = show(tokenizer, [ids[:3], ids[3:4]], stop_reason="X", stop=("X",))
    assert text_of(pieces) == "aXb"
    pieces = show(tokenizer, [ids], finish=FinishReason.LENGTH, stop=("X",))
    assert text_of(pieces) == "aXbXc"


def test_half_a_character_waits_for_its_other_half(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é")
    assert len(ids) == 2
    pieces = show(tokenizer, [[i] for i in ids], finish=FinishReason.LENGTH)
    assert [piece.text for piece in pieces] == ["", "é"]


def test_half_a_character_at_the_end_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("aé")[:-1]
    assert (
        text_of(show(tokenizer, [ids], finish=FinishReason.LENGTH)) == "a\N{REPLACEMENT CHARACTER}"
    )


def test_an_empty_last_delta_still_ends_the_choice(tokenizer: Tokenizer) -> None:
    pieces = show(tokenizer, [tokenizer.encode("a"), []])
    assert pieces[-1].finish_reason is FinishReason.STOP
    assert text_of(pieces) == "a"


def test_offsets_count_the_characters_before_each_token(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("a the é"), tokenizer.eos_token_ids[0]]
    pieces = show(tokenizer, [ids[:2], ids[2:]])
    # a, " the", " ", two halves of é, end of sequence
    assert [offset for piece in pieces for offset in piece.offsets] == [0, 1, 5, 6, 6, 7]


def test_logprobs_of_other_tokens_are_a_broken_promise(tokenizer: Tokenizer) -> None:
    choice = ChoiceText(tokenizer, SamplingParams(seed=1, max_tokens=9), 0)
    with pytest.raises(WorkerError, match="logprobs"):
        choice.push(TokenDelta("r", 0, (1, 2), logprobs=(TokenLogprobs(1, -0.1),)))


@given(st.data())
def test_deltas_change_nothing_about_the_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=1, max_size=30))
    cut = data.draw(st.integers(0, len(ids)))
    pieces = show(tokenizer, [ids[:cut], ids[cut:]], finish=FinishReason.LENGTH)
    assert text_of(pieces) == tokenizer.decode(ids)


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_the_trimmer_cuts_where_the_matcher_does(text: str, stops: list[str], step: int) -> None:
    matcher, trimmer = StopMatcher(stops), StopTrimmer(stops)
    wanted = shown = ""
    stop = None
    for start in range(0, len(text), step):
        part = text[start : start + step]
        safe, stop = matcher.push(part)
        wanted += safe
        shown += trimmer.push(part)
        if stop is not None:
            break
    wanted += matcher.flush()
    shown += trimmer.finish("", stopped=stop is not None)
    assert shown == wanted


@given(
    st.text("ab", max_size=40),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_a_text_that_nothing_ended_is_shown_whole(text: str, stops: list[str], step: int) -> None:
    trimmer = StopTrimmer(stops)
    parts = [text[start : start + step] for start in range(0, len(text), step)]
    assert "".join(map(trimmer.push, parts)) + trimmer.finish("!", stopped=False) == text + "!"
