from __future__ import annotations

from typing import Any

import pytest

from triptych.launch.client import Answer
from triptych.launch.timings import byte_size, timing_rows

REMOTE: dict[str, Any] = {
    "prompt_tokens": 57,
    "cached_tokens": 16,
    "completion_tokens": 3,
    "queue_ms": 0.41,
    "prefill_ms": 212.3,
    "transfer_ms": 1.94,
    "first_token_ms": 231.0,
    "fetch_ms": 5.9,
    "hidden_ms": 4.0,
    "kv_bytes": 2_202_010,
    "kv_path": "shm",
    "prefill_worker": "prefill-0",
    "fallbacks": [],
    "decode_worker": "decode-0",
}


def answer(timings: dict[str, Any] | None, *arrivals: float) -> Answer:
    return Answer("text", "stop", arrivals, None, timings)


def test_every_leg_of_a_remote_prefill_has_its_line() -> None:
    rows = timing_rows(answer(REMOTE, 0.236, 0.256, 0.278))
    assert [(row.name, row.value) for row in rows] == [
        ("queue", "0.4 ms"),
        ("prefill", "212 ms"),
        ("transfer", "1.9 ms"),
        ("first token", "231 ms"),
        ("next tokens", "21.0 ms"),
        ("answer", "3 tokens"),
    ]
    notes = {row.name: row.note for row in rows}
    assert notes["prefill"] == "57 prompt tokens, 16 of them cached, on prefill-0"
    assert notes["transfer"] == "2.1 MiB of KV over shm; 4.0 ms of 5.9 ms hidden behind prefill"
    assert notes["first token"] == "236 ms at this client"
    assert notes["answer"] == "48 tokens/s, ended by stop"


def test_a_prefill_at_home_moves_nothing() -> None:
    at_home = REMOTE | {"kv_path": "", "prefill_worker": "", "kv_bytes": 0, "cached_tokens": 0}
    rows = {row.name: row for row in timing_rows(answer(at_home, 0.1))}
    assert rows["transfer"].value == "none"
    assert rows["prefill"].note == "57 prompt tokens, on the decode worker"
    assert "next tokens" not in rows


def test_each_fallback_is_named() -> None:
    fallen = REMOTE | {"fallbacks": ["shm: stale block", "tcp: peer gone"]}
    notes = [row.note for row in timing_rows(answer(fallen)) if row.name == "fallback"]
    assert notes == ["shm: stale block", "tcp: peer gone"]


def test_without_timings_there_is_nothing_to_show() -> None:
    assert timing_rows(answer(None, 0.1, 0.2)) == []


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1024.0 TiB"),
    ],
)
def test_sizes_are_in_binary_units(count: int, expected: str) -> None:
    assert byte_size(count) == expected
