"""Micro-batches, step by step: what they bring, and whether sides wait as long as the law says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from bench.experts_home import home_with_workers
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence as Tokens
from triptych.experts.pipeline import period, stall_shares
from triptych.experts.tempo import StepTimes
from triptych.request import SamplingParams
from triptych.worker.boot import EngineParts

_COUNTS = (1, 2, 3, 4)
_WARM = 6  # steps


@dataclass(slots=True)
class Seen:
    """Steps of one number of micro-batches; medians are what counts."""

    steps: list[StepTimes] = field(default_factory=list)

    def step_s(self) -> float:
        return median(step.step_s for step in self.steps)

    def stage_s(self) -> tuple[float, float]:
        """Attention, FFN: of one micro-batch and layer."""
        attention = median(step.attention_layer_s for step in self.steps)
        return attention, median(step.ffn_layer_s for step in self.steps)

    def link_s(self) -> float:
        """One way, of steps in one micro-batch: only there nothing else keeps an answer waiting."""
        return median(step.link_s or 0.0 for step in self.steps)

    def stall(self) -> float:
        """Part of the time in which the home waited."""
        return median(1 - s.attention_s / s.step_s for s in self.steps)


@dataclass(frozen=True, slots=True)
class TempoRow:
    """One number of micro-batches, 0: as measured."""

    count: int
    step_ms: float
    speedup: float  # of throughput, over one micro-batch
    stall: float  # part of the time in which attention waited, measured
    predicted_stall: float  # by the law, from the stages' times
    period_error: float  # of the law's time of a step, relative


def measure(model: str, *, batch: int, context: int, rounds: int, workers: int) -> list[TempoRow]:
    """Steps of `batch` sequences behind `context` tokens each, all numbers in turns."""
    with home_with_workers(model, workers, "speculation.mode=off") as parts:
        assert parts.experts is not None
        tempo = parts.experts.experts.tempo
        jobs = decode_jobs(parts, batch, context)
        seen = {count: Seen() for count in (*_COUNTS, 0)}
        for turn in range(-_WARM, rounds):
            for count in seen:
                tempo.fixed = count
                parts.runner.forward(jobs)
                if turn >= 0 and tempo.last is not None:
                    seen[count].steps.append(tempo.last)
    return [row_of(count, steps, seen[1]) for count, steps in seen.items()]


def row_of(count: int, seen: Seen, alone: Seen) -> TempoRow:
    lanes = round(median(step.lanes for step in seen.steps))
    stages = (*seen.stage_s(), alone.link_s())
    predicted = period(lanes, *stages) * seen.steps[0].layers
    return TempoRow(
        count=count,
        step_ms=1e3 * seen.step_s(),
        speedup=alone.step_s() / seen.step_s(),
        stall=seen.stall(),
        predicted_stall=stall_shares(lanes, *stages).attention,
        period_error=predicted / seen.step_s() - 1,
    )


def decode_jobs(parts: EngineParts, batch: int, context: int) -> Sequence[RowJob]:
    """A decode step of every sequence; it may be run again and again."""
    draw = torch.Generator().manual_seed(1)
    params = SamplingParams(seed=1, max_tokens=8, temperature=0.0, ignore_eos=True)
    jobs = []
    for number in range(batch):
        tokens = torch.randint(100, 10_000, (context,), generator=draw).tolist()
        sequence = Tokens(str(number), tokens, parts.root(""), parts.layout.block_tokens, params)
        parts.scheduler.add(sequence)
        while prompt := parts.scheduler.next_batch():
            parts.runner.forward(prompt)
            for job in prompt:
                parts.scheduler.advance(job)
        jobs.append(RowJob(sequence, context - 1, context))
    return jobs
