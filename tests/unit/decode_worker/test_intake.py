"""Whether a prompt is worth sending away."""

from __future__ import annotations

import pytest

from decode_worker.intake import wants_remote


@pytest.mark.parametrize(
    "num_tokens, num_cached, num_targets, expected",
    [
        (1000, 0, 1, True),
        (1000, 0, 0, False),  # nobody to ask
        (31, 0, 1, False),  # too short
        (1000, 976, 1, False),  # almost all of it is here
        (32, 0, 1, True),
    ],
)
def test_only_prompts_that_miss_enough_are_sent_away(
    num_tokens: int, num_cached: int, num_targets: int, expected: bool
) -> None:
    wanted = wants_remote(
        num_tokens=num_tokens, num_cached=num_cached, num_targets=num_targets, min_remote_tokens=32
    )
    assert wanted is expected
