"""What the next home is told, and which homes are given up."""

from __future__ import annotations

from router.home_watch import HomeWatch
from router.link import Loss
from router.progress import Progress
from transport.protos import worker_pb2 as pb
from transport.registry import WorkerView
from triptych.request import FinishReason, TokenDelta


def view(epoch: int = 1, step_s: float = 0.0) -> WorkerView:
    return WorkerView("d", epoch, "decode", "unix:/d", "tiny", 256, 16, 16, "", step_s=step_s)


def test_the_next_home_is_told_what_each_choice_has() -> None:
    progress = Progress(num_prompt=10, n=3)
    progress.add_token(5)
    progress.add_token(6)
    progress.add(TokenDelta("", 1, (7,), finish_reason=FinishReason.STOP))
    assert progress.resumed() == [
        pb.Resumed(choice=0, token_ids=[5, 6]),
        pb.Resumed(choice=1, done=True),
    ]
    assert (progress.num_left, progress.num_given) == (2, 12)


def test_stats_cover_all_homes_and_the_first_one_knows_what_was_cached() -> None:
    progress = Progress(num_prompt=10)
    progress.add_cached(4)
    progress.add_cached(9)
    for token_id in range(5):
        progress.add_token(token_id)
    told = pb.RequestStats(prompt_tokens=10, cached_tokens=9, completion_tokens=2, rounds=1)
    whole = progress.whole(told)
    assert (whole.cached_tokens, whole.completion_tokens, whole.rounds) == (4, 5, 4)


def test_a_home_that_attaches_anew_in_time_is_not_lost() -> None:
    watch = HomeWatch(step_limit_s=5)
    home = [("d", 1)]
    assert not watch.lost(home, [], now=0.0)
    assert not watch.lost(home, [view()], now=0.9)
    assert not watch.lost(home, [], now=1.5)
    assert watch.lost(home, [], now=2.6)[home[0]].kind is Loss.SILENT


def test_another_process_under_its_name_is_another_home() -> None:
    watch = HomeWatch(step_limit_s=5)
    watch.lost([("d", 1)], [view(epoch=2)], now=0.0)
    assert set(watch.lost([("d", 1), ("d", 2)], [view(epoch=2)], now=1.1)) == {("d", 1)}


def test_a_step_that_takes_too_long_is_a_stall() -> None:
    watch = HomeWatch(step_limit_s=5)
    assert not watch.lost([("d", 1)], [view(step_s=5)], now=0.0)
    assert watch.lost([("d", 1)], [view(step_s=5.1)], now=0.0)[("d", 1)].kind is Loss.STALLED
