"""The multi-turn benchmark cuts what users say, counts what is new in a turn, and compares."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

from bench.multi_turn import (
    Replay,
    Turn,
    asked_in_turn,
    new_tokens,
    said_by_users,
    same_text,
    summary,
)

TIMINGS = {"queue_ms": 1, "prefill_ms": 2, "transfer_ms": 3, "kv_bytes": 0, "prefill_worker": "p"}
TURNS = [
    Turn(0, 0, 0, 1.0, "yes", prompt_tokens=200, completion_tokens=20, timings=TIMINGS),
    Turn(0, 1, 0, 3.0, "no", 500, 10, cached_tokens=210, timings=TIMINGS),
]


def test_users_say_pieces_of_about_the_same_length_that_follow_each_other() -> None:
    text = "".join(chr(ord("a") + n % 26) for n in range(20_000))
    said = said_by_users(text, conversations=3, turns=2)
    assert [len(turns) for turns in said] == [2, 2, 2]
    assert text.startswith("".join(words for turns in said for words in turns))
    assert all(600 <= len(words) < 1300 for turns in said for words in turns)


def test_a_text_that_is_too_short_is_said_again() -> None:
    assert said_by_users("a" * 1300, conversations=1, turns=4)[0][3] == "a" * (600 + 431)


def test_new_is_what_no_earlier_turn_had_or_generated() -> None:
    again = [dataclasses.replace(turn, round=1) for turn in TURNS]
    assert new_tokens([*TURNS[::-1], *again]) == [200, 280, 200, 280]


def test_policies_are_compared_with_the_last_one_and_with_what_is_new() -> None:
    second = [dataclasses.replace(turn, round=1, ttft_s=turn.ttft_s + 1) for turn in TURNS]
    turns = [*TURNS, *second]
    slower = [dataclasses.replace(turn, ttft_s=2 * turn.ttft_s) for turn in turns]
    found = summary({"predicted": Replay(turns, 1.0, 400), "round-robin": Replay(slower, 3.0, 600)})
    assert found["ttft_p50_ratio"] == 2 and found["same_text"]
    assert found["ratio_by_round"] == [2, 2]
    assert found["rows"][0]["cached_share"] == 0.3
    assert found["limit_ttft_p50"] == pytest.approx(240 * 4 / 1000)


@pytest.mark.parametrize("number", [0, 1], ids=["the same round", "another round"])
def test_another_text_is_noticed(number: int) -> None:
    assert same_text(TURNS)
    assert not same_text([*TURNS, dataclasses.replace(TURNS[1], text="yes", round=number)])


def test_clusters_are_asked_in_turn_and_who_was_first_is_last_the_next_time() -> None:
    options = argparse.Namespace(conversations=3, in_flight=2, rounds=2, policies=["a", "b"])
    asked = [(policy, number, *some) for policy, number, some in asked_in_turn(options)]
    assert asked == [
        *[("a", 0, 0, 1), ("b", 0, 0, 1), ("b", 0, 2), ("a", 0, 2)],
        *[("b", 1, 0, 1), ("a", 1, 0, 1), ("a", 1, 2), ("b", 1, 2)],
    ]
