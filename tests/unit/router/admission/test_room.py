"""How much the workers may have under way, as far as they tell."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.admission.predictor import Line, MeasuredTtft
from router.admission.room import Load, RecentLoad, WorkerLimits, pace_of, room_of
from router.admission.tempo import TempoLimit
from tests.unit.router.views import HOME
from transport.pace import Pace, StepCost
from transport.registry import WorkerView
from triptych.config import ClusterConfig

LIMITS = WorkerLimits(prefill_tokens=2000, sequences=64)
PREFILL = replace(HOME, worker_id="prefill-0", role="prefill")


def test_limits_come_from_the_engines_of_the_pools() -> None:
    config = ClusterConfig.model_validate({"engine": {"chunk_tokens": 256, "max_running": 8}})
    assert WorkerLimits.of(config) == WorkerLimits(prefill_tokens=2048, sequences=8)


def test_prefill_workers_bound_prompts_and_homes_bound_sequences() -> None:
    room = room_of("m", [HOME, PREFILL, replace(PREFILL, worker_id="p2")], LIMITS, Load())
    assert room is not None
    assert (room.prefill, room.sequences, room.kv_tokens) == (4000, 64, 1600)


@pytest.mark.parametrize("change", [{"draining": True}, {"model": "other"}, {"role": "prefill"}])
def test_without_a_home_there_is_none(change: dict[str, object]) -> None:
    assert room_of("m", [replace(HOME, **change)], LIMITS, Load()) is None  # type: ignore[arg-type]


def test_what_other_routers_have_under_way_takes_room_and_our_own_does_not() -> None:
    view = replace(HOME, running=10, waiting=2, queued_tokens=500)
    room = room_of("m", [view], LIMITS, Load(prefill=100, sequences=8))
    assert room is not None
    assert (room.prefill, room.sequences) == (1600, 60)


def test_a_report_older_than_our_last_answers_is_not_taken_for_others_work() -> None:
    recent = RecentLoad()
    recent.peak(Load(500, 64, 400), now=10.0)
    assert recent.peak(Load(0, 0), now=10.2) == Load(500, 64, 400)
    assert recent.peak(Load(0, 0), now=10.6) == Load(500, 64, 400)
    assert recent.peak(Load(0, 0), now=11.2) == Load(0, 0)


def test_a_full_kv_pool_takes_no_more_unless_nothing_of_ours_is_there() -> None:
    room = room_of("m", [replace(HOME, free_blocks=0)], LIMITS, Load())
    assert room is not None
    assert not room.takes_more(Load(0, 1))
    assert room.takes_more(Load(0, 0))


def test_a_line_through_measured_times_predicts_longer_queues() -> None:
    predictor = MeasuredTtft()
    for tokens in (100, 200, 400, 800) * 10:
        predictor.answered(tokens, 0.05 + tokens / 1000, 0.0)
    assert predictor.seconds(0.0, 4000, 0.0) == pytest.approx(4.05, rel=0.02)
    predictor.drained(3000.0, 2.0)
    assert predictor.seconds(1500.0, 100, 0.0) == pytest.approx(1.15, rel=0.02)


def test_nothing_is_predicted_from_nothing() -> None:
    assert MeasuredTtft().seconds(1e6, 1e6, 0.0) is None


def test_before_the_first_answer_workers_own_measure_is_believed() -> None:
    predictor = MeasuredTtft()
    predictor.paced(Line(0.02, 0.001))
    assert predictor.seconds(0.0, 500, 0.0) == pytest.approx(0.52)


def test_measured_times_outweigh_what_workers_say_of_themselves() -> None:
    predictor = MeasuredTtft()
    predictor.paced(Line(0.0, 0.001))
    for step in range(200):
        predictor.answered(100, 0.3, now=0.01 * step)
    found = predictor.seconds(0.0, 100, 2.0)
    assert found is not None and 0.28 < found < 0.35


def test_a_storm_is_forgotten_though_nobody_who_is_turned_away_can_tell_that_it_is_over() -> None:
    predictor = MeasuredTtft()
    predictor.paced(Line(0.01, 0.0001))
    for step in range(64):
        predictor.answered(1000, 1.0 + step % 2 * 6.0, now=0.1 * step)
    stormy = predictor.seconds(0.0, 100, 6.4)
    calm = predictor.seconds(0.0, 100, 66.4)
    assert stormy is not None and calm is not None
    assert stormy > 0.3
    assert calm < 0.05


def line(*workers: WorkerView) -> tuple[float, float]:
    found = pace_of(workers)
    assert found is not None
    return found.fixed_s, found.per_token_s


def test_prompts_are_as_fast_as_all_who_compute_them_together() -> None:
    slow = replace(HOME, pace=Pace(prefill=StepCost(0.1, 0.001, 0.0), chunk_tokens=100))
    fast = replace(HOME, pace=Pace(prefill=StepCost(0.1, 0.0, 0.0), chunk_tokens=100))
    assert line(slow) == pytest.approx((0.1, 0.002))
    assert line(slow, fast) == pytest.approx((0.1, 1 / 1500))
    assert line(slow, HOME) == pytest.approx((0.1, 0.001))  # as fast as the others
    assert pace_of([HOME]) is None


def test_streams_take_their_share_of_the_steps_that_compute_prompts() -> None:
    pace = Pace(
        prefill=StepCost(0.1, 0.001, 0.0), decode=StepCost(0.1, 0.01, 0.0), chunk_tokens=100
    )
    home = replace(HOME, pace=pace, running=20)
    assert line(home) == pytest.approx((0.1, 0.004))  # 100 rows take 0.2 s, 20 streams 0.2 s more


def test_a_home_takes_as_many_sequences_as_can_decode_at_the_pace_that_is_promised() -> None:
    pace = Pace(decode=StepCost(0.02, 0.002, 1e-6), tokens_per_step=1.0)
    home = replace(HOME, pace=pace, running=4, free_blocks=75)  # 25 blocks of 16: 100 each
    limits = replace(LIMITS, itl_s=0.1)
    assert limits.streams_of(home) == pytest.approx(0.08 / 0.0021)
    drafting = replace(home, pace=replace(pace, tokens_per_step=1.5))
    assert limits.streams_of(drafting) == pytest.approx(0.13 / 0.0021)
    slow = replace(home, pace=replace(pace, decode=StepCost(0.2, 0.0, 0.0)))
    assert limits.streams_of(slow) == 1
    assert limits.streams_of(HOME) == LIMITS.streams_of(home) == 64
    room = room_of("m", [home, HOME], limits, Load(sequences=4))
    assert room is not None
    assert room.sequences == pytest.approx(64 + 0.08 / 0.0021)


def test_workers_have_their_next_steps_unless_those_take_too_long() -> None:
    pace = Pace(prefill=StepCost(0.1, 0.001, 0.0), chunk_tokens=100)  # 500 tokens a second
    room = room_of("m", [replace(HOME, pace=pace)] * 2, LIMITS, Load())
    assert room is not None
    assert [room.in_time(n, seconds=10).prefill for n in (0, 500, 9000)] == [200, 500, 4000]
    hurried = [room.in_time(n, seconds=0.2).prefill for n in (0, 500)]
    assert hurried == [pytest.approx(100), 500], "0.1 s, and 0.1 s of tokens"


def test_slow_tokens_lower_the_number_of_sequences_and_fast_ones_raise_it_again() -> None:
    tempo = TempoLimit(itl_s=0.05)
    tempo.look(100, 10.0, running=20, now=1.0)  # 100 ms each
    assert tempo.sequences == pytest.approx(18)
    tempo.look(300, 14.0, running=18, now=2.0)  # 20 ms each
    assert tempo.sequences == pytest.approx(19)
    tempo.look(500, 18.0, running=3, now=3.0)  # not in use: nothing is learned
    assert tempo.sequences == pytest.approx(19)


def test_without_a_target_sequences_are_not_limited() -> None:
    tempo = TempoLimit(None)
    tempo.look(100, 100.0, running=20, now=1.0)
    assert tempo.sequences == float("inf")
