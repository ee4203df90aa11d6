"""The scale for a wanted share is found, told to two digits, and never where λ would reach 1."""

from __future__ import annotations

import math

import pytest

from triptych.calibrate.search import one_scale, scale_for
from triptych.calibrate.sparse import lengths_of
from triptych.errors import ConfigError


def share_at(scale: float) -> float:
    """A tenth more for each doubling."""
    return min(0.9, 0.1 * math.log2(scale))


@pytest.mark.parametrize("wanted", [0.1, 0.35, 0.5, 0.8])
def test_the_wanted_share_is_met_within_a_hundredth(wanted: float) -> None:
    assert share_at(scale_for(wanted, share_at, 8192)) == pytest.approx(wanted, abs=0.011)


def test_what_cannot_be_reached_gets_as_near_as_the_length_allows() -> None:
    assert scale_for(0.95, share_at, 2048) == 1024


def test_a_share_that_jumps_is_met_at_the_jump() -> None:
    def jumps(scale: float) -> float:
        return 0.6 if scale > 100 else 0.2

    assert scale_for(0.4, jumps, 8192) == pytest.approx(100, rel=0.02)


def test_one_scale_serves_all_lengths() -> None:
    assert one_scale([10, 1000]) == 100
    assert one_scale([33.333]) == 33


def test_lengths_are_those_asked_for_or_parts_of_the_context() -> None:
    assert lengths_of([2048, 512, 2048], 9000, 8192) == [512, 2048]
    assert lengths_of([], 9000, 8192) == [2048, 4096, 8192]
    assert lengths_of([], 600, 8192) == [300, 600]


def test_what_the_text_or_the_model_cannot_give_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--tokens 9000.*8192.*context"):
        lengths_of([9000], 20000, 8192)
    with pytest.raises(ConfigError, match=r"--tokens 900: .*600, what --text has"):
        lengths_of([900], 600, 8192)
    with pytest.raises(ConfigError, match="--text: has 100 tokens"):
        lengths_of([], 100, 8192)
