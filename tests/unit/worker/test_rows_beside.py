"""How much of a prompt a step computes beside streams, so that their tokens keep their pace."""

from __future__ import annotations

from functools import partial

import pytest

from transport.pace import StepCost
from triptych.engine.rows import RowJob
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.kv.pool import BlockPool
from triptych.obs.pace import PaceMeter
from triptych.worker.pace import rows_beside

BASE_S, PROMPT_ROW_S, DECODE_ROW_S = 0.002, 0.0003, 0.0017


def measured(prompt_row_s: float = PROMPT_ROW_S) -> PaceMeter:
    """Of a worker whose steps took so long."""
    meter = PaceMeter()
    for rows in [16, 64, 256, 128] * 10:
        meter.observe_step(BASE_S + rows * prompt_row_s, prompt_rows=rows)
    for rows in [1, 8, 32, 16] * 10:
        meter.observe_step(BASE_S + rows * DECODE_ROW_S, decode_rows=rows)
    return meter


def seconds_of(jobs: list[RowJob]) -> float:
    """A step, by the costs above."""
    prompts = sum(job.num_rows for job in jobs if job.num_rows > 1)
    streams = sum(job.num_rows == 1 for job in jobs)
    return BASE_S + prompts * PROMPT_ROW_S + streams * DECODE_ROW_S


def test_what_streams_need_of_a_step_is_taken_from_prompts() -> None:
    alone, beside = (rows_beside(measured(), 0.1, streams, 0.0, 0) for streams in (0, 20))
    assert alone == pytest.approx((0.08 - BASE_S) / PROMPT_ROW_S, rel=0.05)
    assert alone - beside == pytest.approx(20 * DECODE_ROW_S / PROMPT_ROW_S, rel=0.1)


def test_prompts_go_on_where_the_streams_alone_miss_their_pace() -> None:
    assert rows_beside(measured(), 0.1, 500, 0.0, 0) == 16


def test_a_worker_that_has_just_started_is_careful() -> None:
    assert rows_beside(PaceMeter(), 0.1, 1, 0.0, 0) == 64


@pytest.mark.parametrize("pair_s", [0.0, 1e-7, 1e-5])
@pytest.mark.parametrize("position", [0, 1000])
def test_rows_of_a_time_take_that_time(pair_s: float, position: int) -> None:
    cost = StepCost(BASE_S, PROMPT_ROW_S, pair_s)
    rows = cost.rows_from(position, 0.08)
    assert cost.seconds(rows, rows * (position + rows / 2)) == pytest.approx(0.08)
    assert cost.rows_from(position, BASE_S / 2) == 0


def test_a_long_prompt_does_not_break_the_pace_of_running_streams() -> None:
    scheduler = Scheduler(BlockPool(200), block_tokens=16, chunk_tokens=512, max_running=16)
    scheduler.rows_beside = partial(rows_beside, measured(), 0.1)
    streams = [Sequence(f"stream {n}", list(range(16)), b"", 16) for n in range(10)]
    for stream in streams:
        scheduler.add(stream)
    prompt = Sequence("prompt", list(range(2000)), b"other", 16)
    sizes = []
    while prompt.num_computed < len(prompt.tokens):
        jobs = scheduler.next_batch()
        if prompt.blocks:
            assert {job.sequence for job in jobs} == {*streams, prompt}
            assert seconds_of(jobs) < 0.1
            sizes.append(jobs[-1].num_rows)
        for job in jobs:
            scheduler.advance(job)
            if job.sequence is not prompt:
                job.sequence.append(7)
        if not sizes and not prompt.blocks:
            scheduler.add(prompt)
    assert len(sizes) > 2000 / 512, "without an objective it is done in four chunks"
    assert min(sizes[:-1]) > 100, "and no step is spent on a few rows"
