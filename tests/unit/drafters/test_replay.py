"""The replay counts the rounds that an engine would take."""

from __future__ import annotations

from triptych.engine.draft import Draft
from triptych.testing.replay import Replay, right_path


def test_the_path_goes_along_the_right_branch() -> None:
    draft = Draft(tokens=(1, 5, 2, 6, 3), parents=(-1, -1, 0, 1, 2))
    assert right_path(draft, [1, 2, 3, 4]) == (0, 2, 4)
    assert right_path(draft, [5, 6]) == (1, 3)
    assert right_path(draft, [9]) == ()


def test_nothing_is_accepted_beyond_the_end_of_the_answer() -> None:
    assert right_path(Draft((1, 2, 3)), [1, 2]) == (0, 1)


def test_replays_add_up() -> None:
    both = Replay(2, 6, 8, 4) + Replay(1, 3, 4, 2)
    assert both == Replay(3, 9, 12, 6)
    assert both.tokens_per_round == 3
