"""The decode worker's step: rows in, tokens out.

Prompts that are prefilled here, decode rows and prompts whose KV came from a prefill worker meet in
one batch. A prompt that arrived needs no row: its last hidden state came with it and only the head
and the sampler are left, so the first token is drawn by the same code as every other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from decode_worker.speculate.speculator import Speculator
from decode_worker.speculate.verify import moves_of
from triptych.drafters.drafter import Verdict
from triptych.engine.finish import check_finish
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.sampler import Drawn, Sampler
from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.models.taps import StatesWanted
from triptych.obs.metrics import WorkerMetrics
from triptych.request import FinishReason, TokenDelta
from triptych.worker.pace import observe_jobs


class StepOutput(NamedTuple):
    """One new token of one sequence, or none if the draw was broken. A tuple, for speed."""

    sequence: Sequence  # goes on meanwhile: only what never changes may be read from it
    drawn: Drawn
    finish_reason: FinishReason | None  # with this token

    @property
    def is_plain(self) -> bool:
        """There is nothing to tell but a token of choice 0."""
        drawn = self.drawn
        return (
            self.finish_reason is None
            and drawn.logprobs is None
            and not drawn.broken
            and self.sequence.choice == 0
        )

    @property
    def delta(self) -> TokenDelta:
        sequence, drawn, finish_reason = self
        return TokenDelta(
            sequence.request_id,
            sequence.choice,
            (drawn.token_id,),
            () if drawn.logprobs is None else (drawn.logprobs,),
            finish_reason,
            None if finish_reason is None else sequence.stop_reason,
        )


Emit = Callable[[list[StepOutput]], None]


class DecodeLoop:
    """One step at a time, on its own thread; every method is called from there. So is `emit`."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        sampler: Sampler,
        speculator: Speculator,
        emit: Emit,
        metrics: WorkerMetrics,
        *,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._sampler = sampler
        self._speculator = speculator
        self._emit = emit
        self._metrics = metrics
        self._eos = eos_token_ids
        self._max_model_len = max_model_len
        self._arrived: list[tuple[Sequence, Tensor]] = []
        self._preemptions = 0  # those that the metrics know of

    def submit(self, sequence: Sequence) -> None:
        """To be computed here, from wherever its KV ends; or to get blocks for KV to come."""
        if not sequence.finished:
            self._speculator.begin(sequence)
            self.scheduler.add(sequence)

    def states_read(self, sequence: Sequence) -> StatesWanted:
        """What should come with its prompt if that is computed elsewhere; from any thread."""
        return self._speculator.states_read(sequence)

    def arrive(self, sequence: Sequence, last_hidden: Tensor, states: Tensor | None = None) -> None:
        """All its KV is in its blocks; `last_hidden` [H] predicts the first token. `states`: those
        of `states_read`, of the last rows.
        """
        if sequence.finished:
            return
        sequence.prompt_done_at = time.monotonic()
        sequence.prefilled_remotely = True
        sequence.num_computed = sequence.num_given
        self.scheduler.add(sequence)
        self.scheduler.commit_blocks(sequence)
        self._arrived.append((sequence, last_hidden))
        if states is not None:
            self._speculator.arrived(sequence, states)

    def restart(self, sequence: Sequence) -> None:
        """Its blocks cannot be trusted any more: others, and from the beginning."""
        if not sequence.finished:
            self.scheduler.restart(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Ends a sequence wherever it is; its blocks go back now. Idempotent."""
        self._remove(sequence)
        self._arrived = [item for item in self._arrived if item[0] is not sequence]

    def step(self) -> bool:
        """One forward, and a token or more for each sequence that caught up; False: no work."""
        jobs = self.scheduler.next_batch()
        arrived, self._arrived = self._arrived, []
        if not jobs and not arrived:
            return False
        began = time.monotonic()
        jobs = self._speculator.draft(jobs)
        hidden = [self._runner.forward(jobs, self._speculator.taps(jobs))] if jobs else []
        for job in jobs:
            if job.sequence.first_step_at is None:
                self._note_start(job.sequence, began)
            if not job.reaches_end:
                self.scheduler.advance(job)
        drawing = [job for job in jobs if job.reaches_end]
        drawing += [
            RowJob(sequence, sequence.num_computed, sequence.num_given) for sequence, _ in arrived
        ]
        hidden += [row[None].to(self._runner.device) for _, row in arrived]
        rows = sum(job.num_rows for job in jobs)
        verdicts = self._draw(drawing, torch.cat(hidden)) if drawing else []
        self._speculator.observe(verdicts, rows, time.monotonic() - began)
        self._count(began, jobs, verdicts)
        return True

    def _draw(self, jobs: list[RowJob], hidden: Tensor) -> list[Verdict]:
        """Tokens for all jobs, from the hidden states of their wanted rows."""
        logits = self._runner.logits(hidden)
        judged = self._speculator.rule.judge(jobs, logits, self._sampler)
        outputs: list[StepOutput] = []
        verdicts, row = list[Verdict](), 0
        for job, (path, told) in zip(jobs, judged, strict=True):
            new = self._commit(job, path, told)
            outputs += new
            found = tuple(output.drawn.token_id for output in new)
            drawn_from = row if len(new) == 1 else row + 1 + path[len(new) - 2]
            verdicts.append(
                Verdict(job.sequence, job.draft, tuple(path), found, logits[drawn_from])
            )
            row += job.num_wanted
        self._emit(outputs)
        return verdicts

    def _commit(self, job: RowJob, path: list[int], tokens: list[Drawn]) -> list[StepOutput]:
        """Appends the tokens, up to one that ends the sequence; it leaves at once, and so does one
        with a broken row.
        """
        sequence, outputs = job.sequence, list[StepOutput]()
        if sequence.prompt_done_at is None:
            sequence.prompt_done_at = time.monotonic()
        sequence.num_rounds += 1
        sequence.num_drafted += len(job.draft)
        for drawn in tokens:
            if not drawn.broken:
                sequence.append(drawn.token_id)
                check_finish(sequence, drawn.token_id, self._eos, self._max_model_len)
            outputs.append(StepOutput(sequence, drawn, sequence.finish_reason))
            if drawn.broken or sequence.finish_reason is not None:
                break
        right = path[: len(outputs)]
        moves = moves_of(right, job.end)
        if moves:
            self._runner.move_kv(sequence.blocks, moves)
        sequence.num_accepted += len(right)
        sequence.count_draft(job.draft.drafter, len(job.draft), len(right))
        self.scheduler.advance(job, len(right))
        if outputs[-1].drawn.broken or sequence.finish_reason is not None:
            self._remove(sequence)
        return outputs

    def _remove(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self._speculator.end(sequence)

    def _note_start(self, sequence: Sequence, now: float) -> None:
        sequence.first_step_at = now
        self._metrics.prefix_query_tokens.inc(sequence.num_given)
        self._metrics.prefix_hit_tokens.inc(sequence.num_cached)

    def _count(self, began: float, jobs: list[RowJob], verdicts: list[Verdict]) -> None:
        preemptions = self.scheduler.num_preemptions
        self._metrics.preemptions.inc(preemptions - self._preemptions)
        self._preemptions = preemptions
        self._metrics.steps.inc()
        self._metrics.step_rows.observe(sum(job.num_rows for job in jobs))
        seconds = time.monotonic() - began
        self._metrics.step_seconds.observe(seconds)
        observe_jobs(self._metrics.pace, jobs, seconds)
        drawn = sum(len(verdict.new_tokens) for verdict in verdicts)
        self._metrics.pace.observe_tokens(drawn, len(verdicts))
