"""How much of a prompt a step computes while others wait for it."""

from __future__ import annotations

import pytest

from triptych.engine.scheduler import Scheduler
from triptych.kv.pool import BlockPool
from triptych.obs.pace import PaceMeter
from triptych.worker.pace import patient_rows


def rows_at(row_s: float, step_s: float = 0.25, chunk_tokens: int = 512) -> int:
    """Where steps took `row_s` a row, and a millisecond."""
    meter = PaceMeter()
    for rows in [16, 64, 256, 128] * 10:
        meter.observe_step(0.001 + rows * row_s, prompt_rows=rows, prompt_pairs=0.0)
    return patient_rows(scheduler_of(chunk_tokens), meter, step_s)


def scheduler_of(chunk_tokens: int) -> Scheduler:
    return Scheduler(BlockPool(4), block_tokens=4, chunk_tokens=chunk_tokens, max_running=4)


def test_a_slow_worker_computes_as_much_as_fits_the_time() -> None:
    assert rows_at(0.004) == pytest.approx(62, abs=3)


def test_a_fast_worker_computes_whole_chunks() -> None:
    assert rows_at(0.00001) == 512


def test_the_slowest_one_still_computes_what_a_step_takes_anyway() -> None:
    assert rows_at(1.0) == 16


def test_a_worker_that_has_just_started_is_careful() -> None:
    assert patient_rows(scheduler_of(512), PaceMeter(), 0.25) == 64
    assert patient_rows(scheduler_of(32), PaceMeter(), 0.25) == 32
