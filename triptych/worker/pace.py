"""What the routers are told of this worker's speed and of its queue."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from transport.pace import pairs_between
from transport.protos import worker_pb2 as pb
from triptych.engine.rows import RowJob
from triptych.engine.scheduler import Scheduler
from triptych.obs.pace import PaceMeter
from triptych.worker.boot import EngineParts

_LEAST_ROWS = 16  # fewer take as long
_UNKNOWN_ROWS = 64  # of a worker that has just started, as one that replaces a lost one has
_SHARE = 0.8  # of the time between tokens is planned for: some steps take longer than predicted


def observe_jobs(meter: PaceMeter, jobs: Seq[RowJob], seconds: float) -> None:
    """A step. What is computed again after a preemption counts as prompt: so it is computed."""
    rows, pairs = [0, 0], [0.0, 0.0]  # of sequences that decode; of prompts
    for job in jobs:
        prompt = job.start < job.sequence.num_prompt or job.end - job.start > 1
        rows[prompt] += job.num_rows
        pairs[prompt] += pairs_between(job.start, job.start + job.num_rows)
    meter.observe_step(
        seconds,
        decode_rows=rows[False],
        decode_pairs=pairs[False],
        prompt_rows=rows[True],
        prompt_pairs=pairs[True],
    )


def patient_rows(scheduler: Scheduler, meter: PaceMeter, step_s: float) -> int:
    """Rows of prompts in a step that takes about `step_s`, by what steps took so far."""
    cost = meter.prefill
    rows = _UNKNOWN_ROWS if cost is None else max(_LEAST_ROWS, round(cost.rows_in(step_s)))
    return min(rows, scheduler.chunk_tokens)


def rows_beside(meter: PaceMeter, itl_s: float, streams: int, pairs: float, position: int) -> int:
    """Rows of prompts in a step beside `streams` sequences that decode, which attend to `pairs`
    positions, so that their tokens come every `itl_s`. By what steps took so far; the first of
    these prompts goes on at `position`.

    Never none: prompts would wait for ever where the streams alone take longer. How many may
    decode is the routers' decision (router/admission/room.py).
    """
    cost, decode = meter.prefill, meter.decode
    if cost is None:
        return _UNKNOWN_ROWS
    streams_s = 0.0 if decode is None else decode.seconds(streams, pairs, steps=0)
    return max(_LEAST_ROWS, round(cost.rows_from(position, _SHARE * itl_s - streams_s)))


def report_pace(load: pb.WorkerLoad, meter: PaceMeter, parts: EngineParts) -> None:
    experts = parts.experts
    pace = meter.pace(
        chunk_tokens=parts.scheduler.prompt_rows(),
        token_bytes=parts.layout.block_bytes // parts.layout.block_tokens,
        expert_wait=0.0 if experts is None else experts.experts.tally.wait_share,
    )
    load.pace.CopyFrom(pace.message())
    load.queued_pairs = parts.scheduler.queued_pairs
