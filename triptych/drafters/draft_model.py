"""Drafts by a small model of the same vocabulary (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.guess import Guesser
from triptych.drafters.known_blocks import KnownBlocks
from triptych.drafters.tree_growth import GrowingTree, Growth
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.runner import Runner
from triptych.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class DraftModelOptions:
    growth: Growth = Growth()
    catch_up_rows: int = 512  # of prompts, in one call: the rest follows in the next ones


@dataclass(slots=True)
class _Reading:
    """How far the model has read a sequence: rows [0, done), in these blocks."""

    done: int = 0
    blocks: list[int] = field(default_factory=list)


class DraftModelDrafter:
    """Its KV lies in memory of its own, under the ids of the target's blocks. What verification
    accepted is read like any other token: one pass, whoever drafted it.
    """

    name = "draft_model"

    def __init__(
        self,
        runner: Runner,
        guesser: Guesser,
        options: DraftModelOptions,
        generations: NDArray[np.uint64],
        block_tokens: int,
    ) -> None:
        """`runner`: of the small model, over as many blocks as the pool has."""
        self._runner = runner
        self._guesser = guesser
        self._options = options
        self._known = KnownBlocks(generations)
        self._block_tokens = block_tokens
        self._readings: dict[Sequence, _Reading] = {}

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._readings[sequence] = _Reading()

    def observe(self, verdicts: Seq[Verdict]) -> None:
        """New tokens are read when a draft behind them is wanted."""

    def end(self, sequence: Sequence) -> None:
        self._readings.pop(sequence, None)

    @torch.inference_mode()
    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        jobs = self._unread(asks)
        if not jobs:
            return [NO_DRAFT] * len(asks)
        hidden = self._runner.forward(jobs)
        most = {ask.sequence: ask.max_nodes for ask in asks}
        trees = list[tuple[Sequence, GrowingTree]]()
        for job in jobs:
            self._note(job)
            if job.reaches_end:
                tree = GrowingTree(self._options.growth, most[job.sequence])
                trees.append((job.sequence, tree))
        if trees:
            self._guesser.expand(trees, self._runner.logits(hidden))
        while active := [pair for pair in trees if pair[1].frontier]:
            self._guesser.expand(active, self._runner.logits(self._frontier(active)))
        drafts = {sequence: tree.draft(self.name) for sequence, tree in trees}
        return [drafts.get(ask.sequence, NO_DRAFT) for ask in asks]

    def _unread(self, asks: Seq[Ask]) -> list[RowJob]:
        """What of each sequence is to be read, as far as there is room."""
        jobs, room = [], self._options.catch_up_rows
        for sequence in (ask.sequence for ask in asks):
            reading = self._readings.get(sequence)
            if reading is None:
                continue
            if reading.blocks != sequence.blocks[: len(reading.blocks)]:
                reading.done, reading.blocks = 0, []  # they were taken away
            if reading.done == 0:
                reading.done = self._read_before(sequence)
            end = min(len(sequence.tokens), reading.done + room)
            if end > reading.done:
                jobs.append(RowJob(sequence, reading.done, end))
                room -= end - reading.done
        return jobs

    def _read_before(self, sequence: Sequence) -> int:
        """Rows of a prefix that the target found in its cache, and the model has KV for."""
        full = (len(sequence.tokens) - 1) // self._block_tokens
        blocks = 0
        while blocks < full and self._known.knows(sequence.blocks[blocks]):
            blocks += 1
        return blocks * self._block_tokens

    def _note(self, job: RowJob) -> None:
        reading, size = self._readings[job.sequence], self._block_tokens
        self._known.add(job.sequence.blocks[job.start // size : job.end // size])
        reading.done = job.end
        reading.blocks = job.sequence.blocks[: -(-job.end // size)]

    def _frontier(self, trees: Seq[tuple[Sequence, GrowingTree]]) -> torch.Tensor:
        """Hidden states of all frontiers; what stands above them is run again with them."""
        jobs, wanted, row = list[RowJob](), list[int](), 0
        for sequence, tree in trees:
            nodes = tree.upper()
            end = len(sequence.tokens)
            jobs.append(RowJob(sequence, end, end, tree.part(nodes)))
            wanted += [row + nodes.index(node) for node in tree.frontier]
            row += len(nodes)
        return self._runner.forward_all(jobs)[wanted]
