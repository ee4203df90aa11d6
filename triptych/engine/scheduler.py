"""Which rows the next step computes. Decides; moves no data.

Running sequences come first, in order of arrival, then waiting ones are admitted while rows and
blocks last: those that are computed here and those that only need room for KV from elsewhere stand
in one queue; streams that were begun elsewhere come before requests that begin, for somebody reads
them. A sequence is admitted with blocks for all its tokens, so half-filled prompts cannot
starve each other. When a running one cannot grow, the youngest gives its blocks back and is
computed again later: by the numerics contract with the same bits.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable

from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.engine.tails import Tails
from triptych.kv.pool import BlockPool


class Scheduler:
    def __init__(self, pool: BlockPool, *, block_tokens: int, chunk_tokens: int, max_running: int):
        self._pool = pool
        self._block_tokens = block_tokens
        self._chunk_tokens = chunk_tokens
        self._max_running = max_running
        self._waiting: deque[Sequence] = deque()
        self._landing: list[Sequence] = []  # have their blocks, their KV is on its way
        self._running: list[Sequence] = []
        self.num_preemptions = 0
        self.tails: Tails | None = None  # none: nobody would read unfinished blocks
        # Rows of prompts in a step while streams that were begun elsewhere catch up: with whole
        # chunks all of them would wait for each other, and so would the streams that run here.
        self.patient_rows: Callable[[], int] = lambda: chunk_tokens
        # The same beside so many sequences that decode, which attend to so many positions together,
        # for a prompt that goes on at this position: with whole chunks they would wait for those.
        self.rows_beside: Callable[[int, float, int], int] = lambda streams, pairs, at: chunk_tokens

    # ---- the verbs of a step -------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Joins the queue. One that has its blocks (KV that arrived, or failed to) runs at once."""
        if sequence in self._landing:
            self._landing.remove(sequence)
        if sequence.blocks:
            self._running.append(sequence)
        else:
            cached = self._pool.touch(sequence.reusable_hashes())
            sequence.likely_cached = cached * self._block_tokens
            self._waiting.insert(self._turn_of(sequence), sequence)

    def next_batch(self) -> list[RowJob]:
        """Row jobs of at most `chunk_tokens` rows together; [] when there is nothing to compute."""
        jobs: list[RowJob] = []
        budget = self._chunk_tokens
        prompts = self.prompt_rows() if self._next_prompt() is not None else budget
        preempted = self.num_preemptions
        for sequence in list(self._running):
            if budget == 0:
                break
            start = sequence.num_computed
            missing = len(sequence.tokens) - start
            rows = min(missing, budget if missing == 1 else prompts)
            if not rows or (self.num_preemptions > preempted and sequence not in self._running):
                continue
            if self._grow(sequence, start + rows):
                jobs.append(RowJob(sequence, start, start + rows))
                budget -= rows
                prompts = min(budget, prompts if missing == 1 else prompts - rows)
        if self.num_preemptions == preempted:
            jobs.extend(self._admit(prompts))
        return jobs

    def lease(self, sequence: Sequence, end: int, wanted: int) -> int:
        """Slots for a draft behind row `end`, at most `wanted`: as many as there are without taking
        anything from anybody.
        """
        missing = -(-(end + wanted) // self._block_tokens) - len(sequence.blocks)
        if missing > 0:
            sequence.blocks.extend(self._pool.allocate(missing) or ())
        return max(0, min(wanted, len(sequence.blocks) * self._block_tokens - end))

    def advance(self, job: RowJob, accepted: int = 0) -> None:
        """The job's rows are computed, and so many of its draft's nodes, now in the slots behind
        them, are tokens of the sequence: commits the blocks that became full.
        """
        sequence = job.sequence
        sequence.num_computed = job.end + accepted
        if sequence.num_computed >= (sequence.num_committed + 1) * self._block_tokens:
            self.commit_blocks(sequence)
        if self.tails is not None:
            self.tails.note(sequence)

    def commit_blocks(self, sequence: Sequence) -> None:
        full = sequence.num_computed // self._block_tokens
        hashes = sequence.hashes()
        for index in range(sequence.num_committed, full):
            self._pool.commit(sequence.blocks[index], hashes[index])
        sequence.num_committed = max(sequence.num_committed, full)

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, finished or not, and gives its blocks back. Idempotent."""
        sequence.finished = True
        self._take_out(sequence)
        self._release(sequence)

    def restart(self, sequence: Sequence) -> None:
        """Gives its blocks back, for whatever may still land in them, and queues it anew."""
        self._take_out(sequence)
        self._release(sequence)
        sequence.restart()
        self._waiting.append(sequence)

    # ---- numbers -------------------------------------------------------------------------------

    def rows_left(self, jobs: list[RowJob]) -> int:
        """Rows that may join a batch for drafts."""
        return max(0, self._chunk_tokens - sum(job.num_rows for job in jobs))

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Tokens that sequences came with and nobody has computed yet."""
        return sum(end - start for start, end in self._queued())

    @property
    def queued_pairs(self) -> float:
        """The same tokens, each with the positions that it attends to."""
        return sum((end - start) * (start + end) / 2 for start, end in self._queued())

    @property
    def chunk_tokens(self) -> int:
        """Rows of a step, at most."""
        return self._chunk_tokens

    def prompt_rows(self) -> int:
        """Rows of prompts that a step may have beside the sequences that decode now."""
        rows = self._chunk_tokens
        if self._anybody_catches_up():
            rows = min(rows, self.patient_rows())
        streams = [seq.num_computed for seq in list(self._running) if _decodes(seq)]
        if streams:
            prompt = self._next_prompt()
            position = 0 if prompt is None else max(prompt.num_computed, prompt.likely_cached)
            rows = min(rows, self.rows_beside(len(streams), sum(streams), position))
        return rows

    # ---- helpers -------------------------------------------------------------------------------

    def _turn_of(self, sequence: Sequence) -> int:
        """Its place in the queue."""
        if not sequence.resumed:
            return len(self._waiting)
        begun = itertools.takewhile(lambda other: other.num_output, self._waiting)
        return sum(1 for _ in begun)

    def _anybody_catches_up(self) -> bool:
        return any(
            seq.resumed and seq.prompt_done_at is None for seq in [*self._running, *self._waiting]
        )

    def _next_prompt(self) -> Sequence | None:
        """Whose rows the next step's rows of prompts begin with."""
        running = (seq for seq in list(self._running) if not _decodes(seq))
        return next(itertools.chain(running, list(self._waiting)), None)

    def _queued(self) -> list[tuple[int, int]]:
        """[start, end) of what is left of each prompt; the cache may hold other parts by then."""
        waiting = [seq for seq in list(self._waiting) if _ready(seq)]
        starts = [(seq.num_computed, seq) for seq in list(self._running)]
        starts += [(seq.likely_cached, seq) for seq in waiting]
        return [(start, seq.num_given) for start, seq in starts if start < seq.num_given]

    def _grow(self, sequence: Sequence, end: int) -> bool:
        """Blocks for the rows before `end`; False if the sequence itself had to give way."""
        if end <= len(sequence.blocks) * self._block_tokens:
            return True
        wanted = -(-end // self._block_tokens)
        while (missing := wanted - len(sequence.blocks)) > 0:
            fresh = self._pool.allocate(missing)
            if fresh is not None:
                sequence.blocks.extend(fresh)
                return True
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.restart()
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        if self.tails is not None:
            self.tails.forget(sequence)
        blocks, sequence.blocks = sequence.blocks, []
        self._pool.release(blocks)

    def _admit(self, budget: int) -> list[RowJob]:
        jobs: list[RowJob] = []
        for sequence in list(self._waiting):
            if budget == 0 or len(self._running) + len(self._landing) >= self._max_running:
                break
            if not _ready(sequence):
                continue  # its prompt is being computed by a sibling; others may pass
            if not self._place(sequence):
                break  # first come, first served: nobody overtakes one that waits for blocks
            self._waiting.remove(sequence)
            if sequence.on_room is not None:
                self._landing.append(sequence)
                on_room, sequence.on_room = sequence.on_room, None
                on_room()
                continue
            self._running.append(sequence)
            rows = min(len(sequence.tokens) - sequence.num_computed, budget)
            jobs.append(RowJob(sequence, sequence.num_computed, sequence.num_computed + rows))
            budget -= rows
        return jobs

    def _place(self, sequence: Sequence) -> bool:
        count = -(-len(sequence.tokens) // self._block_tokens)
        reservation = self._pool.reserve(sequence.reusable_hashes(), count)
        if reservation is None:
            return False
        sequence.blocks = reservation.blocks
        sequence.num_computed = reservation.num_cached * self._block_tokens
        sequence.num_committed = reservation.num_cached
        if len(sequence.tokens) == sequence.num_given:
            sequence.num_cached = sequence.num_computed
        if sequence.on_place is not None:
            on_place, sequence.on_place = sequence.on_place, None
            sequence.num_computed += on_place(reservation.blocks, reservation.num_cached)
        return True

    def _take_out(self, sequence: Sequence) -> None:
        for place in (self._running, self._landing, self._waiting):
            if sequence in place:
                place.remove(sequence)


def _decodes(sequence: Sequence) -> bool:
    return sequence.num_output > 0 and sequence.num_computed + 1 == len(sequence.tokens)


def _ready(sequence: Sequence) -> bool:
    """Nobody else is computing blocks that it will share."""
    leader = sequence.leader
    if leader is None or leader.prompt_done:
        return True
    return leader.num_committed >= leader.num_prompt // leader.block_tokens
