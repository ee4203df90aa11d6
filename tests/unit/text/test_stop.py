from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import RequestError
from triptych.stop import StopMatcher

# Few letters, so that stop strings overlap each other and themselves.
_TEXT = st.text("ab\n", max_size=40)
_STOPS = st.lists(st.text("ab\n", min_size=1, max_size=6), max_size=4)


def _run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = ""
    for piece in pieces:
        safe, matched = matcher.push(piece)
        text += safe
        if matched is not None:
            return text, matched
    return text + matcher.flush(), None


def _cut(text: str, cuts: list[int]) -> list[str]:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _expected(stops: list[str], text: str) -> tuple[str, str | None]:
    for end in range(len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            longest = max(completed, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(stops=_STOPS, text=_TEXT, cuts=st.lists(st.integers(0, 40)))
def test_the_answer_does_not_depend_on_how_the_text_was_cut(
    stops: list[str], text: str, cuts: list[int]
) -> None:
    assert _run(stops, _cut(text, cuts)) == _expected(stops, text)


@given(stops=_STOPS, text=_TEXT)
def test_no_more_is_held_back_than_could_begin_a_stop_string(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for end, character in enumerate(text, start=1):
        safe, matched = matcher.push(character)
        shown += safe
        if matched is not None:
            return
        held = text[len(shown) : end]
        assert shown + held == text[:end]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_text_passes_at_once_when_there_are_no_stop_strings() -> None:
    assert StopMatcher([]).push("anything") == ("anything", None)


def test_a_stop_string_may_span_tokens() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hello\n") == ("Hello", None)
    assert matcher.push("Us") == ("", None)
    assert matcher.push("er: hi") == ("", "\nUser:")


def test_a_false_start_comes_out_when_it_is_over() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.push("a</e") == ("a", None)
    assert matcher.push("m>") == ("</em>", None)


def test_a_false_start_comes_out_at_the_end_of_the_text() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("the EN") == ("the ", None)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_the_stop_string_completed_first_wins_over_one_that_began_first() -> None:
    assert _run(["abcd", "bc"], ["xabcd"]) == ("xa", "bc")


def test_the_longest_of_those_completed_together_wins() -> None:
    assert _run(["c", "abc", "bc"], ["xabc"]) == ("x", "abc")


def test_nothing_follows_a_match() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("One. Two.") == ("One", ".")
    assert matcher.push("Three") == ("", ".")
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        StopMatcher(["ok", ""])
    assert caught.value.param == "stop"
