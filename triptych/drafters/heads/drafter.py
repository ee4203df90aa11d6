"""Drafts by a trained head (EAGLE-3, arXiv 2503.01840; in one pass after DFlash, arXiv 2602.06036).

Row t of the head joins token t+1 with the target's states at position t; its KV lies in slot t of
the sequence's blocks, in memory of the head's own. States wait until the head is asked: a head that
is never asked costs the copies.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.guess import Guesser
from triptych.drafters.heads.growers import Round, make_grower
from triptych.drafters.heads.head import DraftHead
from triptych.drafters.heads.memory import Memory
from triptych.drafters.known_blocks import KnownBlocks
from triptych.drafters.tree_growth import GrowingTree, Growth
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence

_FEW = 32  # rows that are kept as they came, with those of the others in their step


@dataclass(frozen=True, slots=True)
class HeadOptions:
    growth: Growth = Growth()
    window: int = 128  # rows before the first draft that a head catches up with


class HeadDrafter:
    """Knows what a head remembers of whom; how a draft grows is told by the head's kind."""

    def __init__(
        self,
        head: DraftHead,
        guesser: Guesser,
        options: HeadOptions,
        generations: NDArray[np.uint64],
        block_tokens: int,
    ) -> None:
        """generations: of the pool's blocks; tells rows that somebody computed from stale ones."""
        self.name = head.config.kind
        self._guesser = guesser
        self.load(head)
        self._options = options
        self._block_tokens = block_tokens
        self._known = KnownBlocks(generations)
        self._memories: dict[Sequence, Memory] = {}

    def load(self, head: DraftHead) -> None:
        """Drafts with this one from now on: a version of the head so far."""
        self.head = head
        self._grower = make_grower(head, self._guesser)

    @property
    def taps(self) -> tuple[int, ...]:
        return self.head.config.taps

    @property
    def window(self) -> int:
        return self._options.window

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._memories[sequence] = Memory(self._block_tokens, self._options.window)

    def end(self, sequence: Sequence) -> None:
        self._memories.pop(sequence, None)

    def observe(self, verdicts: Seq[Verdict]) -> None:
        """What was right comes as states."""

    def feed(self, sequence: Sequence, start: int, taps: Tensor) -> None:
        """The target's states bfloat16 [m, taps · H] of rows from `start` on, whose tokens are
        final.
        """
        memory = self._memories.get(sequence)
        if memory is None:
            return
        rows = taps.size(0)
        if rows > self._options.window:
            skipped = rows - self._options.window
            start, taps = start + skipped, taps[skipped:]
        if rows > _FEW:
            taps = taps.clone()  # else the rows of all others live as long as these
        memory.feed(start, taps)

    @torch.inference_mode()
    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        rounds = [round_ for round_ in map(self._round, asks) if round_ is not None]
        if not rounds:
            return [NO_DRAFT] * len(asks)
        self._grower.grow(rounds)
        for round_ in rounds:
            self._remember(round_)
        drafts = {round_.sequence: round_.tree.draft(self.name) for round_ in rounds}
        return [drafts.get(ask.sequence, NO_DRAFT) for ask in asks]

    def _round(self, ask: Ask) -> Round | None:
        """None: the head knows nothing of the last tokens."""
        sequence, memory = ask.sequence, self._memories.get(ask.sequence)
        end, size = len(sequence.tokens) - 1, self._block_tokens
        if memory is None or memory.end < end:
            return None
        if memory.blocks != sequence.blocks[memory.origin // size :][: len(memory.blocks)]:
            memory.restart(memory.synced)
        if memory.synced == memory.origin:
            memory.trust(self._first_known(sequence, memory.origin // size))
        states = memory.take(end)
        if states is None:
            return None
        tree = GrowingTree(self._options.growth, ask.max_nodes)
        return Round(sequence, memory.synced, end, memory.origin // size, states, tree)

    def _first_known(self, sequence: Sequence, block: int) -> int:
        """Walks back over blocks whose rows are there, from when their tokens were first seen."""
        while block > 0 and self._known.knows(sequence.blocks[block - 1]):
            block -= 1
        return block

    def _remember(self, round_: Round) -> None:
        memory, size = self._memories[round_.sequence], self._block_tokens
        self._known.add(round_.sequence.blocks[round_.begin // size : round_.end // size])
        memory.synced = round_.end
        memory.blocks = round_.sequence.blocks[memory.origin // size : -(-round_.end // size)]
