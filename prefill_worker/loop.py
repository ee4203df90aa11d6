"""The prefill worker's step: prompt chunks in, announcements out.

No token is ever drawn here. What leaves the worker is KV (read by the home) and the hidden state of
each prompt's last row, from which the home draws the first token by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from prefill_worker.states import LastStates
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.models.taps import LayerTap, StatesWanted
from triptych.obs.metrics import WorkerMetrics
from triptych.worker.pace import observe_jobs


@dataclass(frozen=True, slots=True)
class Progress:
    """Something a home may want to know. All fields are final when this is emitted."""

    sequence: Sequence
    first_block: int  # blocks [first_block, end_block) of the prompt …
    end_block: int
    first_layer: int  # … have their final bytes in layers [first_layer, end_layer)
    end_layer: int
    started: bool = False  # the first one of a prompt; its cached blocks are all of it
    last_hidden: Tensor | None = None  # [H]; the prompt is done
    states: Tensor | None = None  # bfloat16 [m, layers · H] of its last rows, for drafters at home


Emit = Callable[[Progress], None]


class PrefillLoop:
    """One step at a time, on its own thread. `emit` is called from that thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        emit: Emit,
        metrics: WorkerMetrics,
        *,
        announce_layers: int,
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._emit = emit
        self._metrics = metrics
        self._num_layers = runner.model.config.num_layers
        self._group = announce_layers or self._num_layers
        ends = range(self._group - 1, self._num_layers, self._group)
        self._group_ends = sorted({*ends, self._num_layers - 1})
        self._states = LastStates()

    def submit(self, sequence: Sequence, wanted: StatesWanted) -> None:
        """A prompt to compute; `wanted`: states that its home asks for."""
        self._states.want(sequence, wanted)
        self.scheduler.add(sequence)

    def arrive(self, sequence: Sequence, num_tokens: int) -> None:
        """It has its blocks, and in them the KV of so many tokens, which nobody computed here."""
        if sequence.finished:
            return
        if num_tokens > sequence.num_computed:
            sequence.num_computed = sequence.num_cached = num_tokens
            self.scheduler.commit_blocks(sequence)
        self.scheduler.add(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Its blocks cannot be trusted any more: others, and from the beginning."""
        if not sequence.finished:
            self.scheduler.restart(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Wherever it is; its blocks go back now."""
        self._states.forget(sequence)
        self.scheduler.remove(sequence)

    def step(self) -> bool:
        """Computes one batch of prompt chunks; False when there was nothing to do."""
        jobs = self.scheduler.next_batch()
        if not jobs:
            return False
        began = time.monotonic()
        for job in jobs:
            self._announce_start(job, began)
        tap = LayerTap(self._group_ends, lambda layer, _: self._after_group(jobs, layer))
        hidden = self._runner.forward(jobs, [tap, *self._states.taps(jobs)])
        finished = iter(hidden)
        for job in jobs:
            self.scheduler.advance(job)
            if job.reaches_end:
                job.sequence.prompt_done_at = time.monotonic()
                self._emit(self._end(job.sequence, next(finished)))
        self._metrics.steps.inc()
        self._metrics.step_rows.observe(sum(job.num_rows for job in jobs))
        seconds = time.monotonic() - began
        self._metrics.step_seconds.observe(seconds)
        observe_jobs(self._metrics.pace, jobs, seconds)
        return True

    def _announce_start(self, job: RowJob, now: float) -> None:
        """Tells that a prompt left the queue, and which of its blocks were in the cache."""
        sequence = job.sequence
        if sequence.first_step_at is not None:
            return
        sequence.first_step_at = now
        self._metrics.prefix_query_tokens.inc(sequence.num_prompt)
        self._metrics.prefix_hit_tokens.inc(sequence.num_cached)
        cached = sequence.num_cached // sequence.block_tokens
        self._emit(Progress(sequence, 0, cached, 0, self._num_layers, started=True))

    def _after_group(self, jobs: list[RowJob], layer: int) -> None:
        """Announces a layer group of all blocks that this forward fills."""
        first = layer // self._group * self._group
        for job in jobs:
            progress = self._progress(job, first, layer + 1)
            if progress.end_block > progress.first_block:
                self._emit(progress)

    def _end(self, sequence: Sequence, last_hidden: Tensor) -> Progress:
        states = self._states.take(sequence)
        return Progress(
            sequence, 0, 0, 0, 0, last_hidden=last_hidden.to("cpu", copy=True), states=states
        )

    def _progress(self, job: RowJob, first_layer: int, end_layer: int) -> Progress:
        """Blocks whose last row is in this job; the prompt's end closes a partial block."""
        size = job.sequence.block_tokens
        end_block = -(-job.end // size) if job.reaches_end else job.end // size
        return Progress(job.sequence, job.start // size, end_block, first_layer, end_layer)
