"""Sparse self-speculation: the target drafts for itself, reading the pages that matter.

Where a long context is what a step costs, a step that reads a twentieth of it is cheap, and hardly
wrong. Verification reads everything and finds which pages matter next, per layer and KV head
(PillarAttn of SparseSpec, arXiv 2512.01278; pages of a block instead of single tokens).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.page_choice import PageChoice, best_pages, make_table, page_budget
from triptych.engine.draft import Draft
from triptych.engine.pages import PageRow, PageScores, PageTable
from triptych.engine.sampler import Sampler, Spot
from triptych.engine.sequence import Sequence
from triptych.models.model import Model
from triptych_kernels.sampling import NO_TOKEN


class PageRunner(Protocol):
    """What of a Runner drafts sparsely."""

    @property
    def model(self) -> Model: ...

    def score_pages(self, scores: PageScores) -> None: ...

    def forward_pages(self, rows: Seq[PageRow]) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class SparseOptions:
    """How much of a context is read; see page_choice."""

    ratio: float = 0.05
    min_tokens: int = 256
    choose: PageChoice = best_pages


@dataclass(slots=True, eq=False)
class _Chain:
    """A draft in the making; it ends early where nothing could be drawn."""

    ask: Ask
    table: PageTable
    tokens: list[int] = field(default_factory=list)
    broken: bool = False

    @property
    def done(self) -> bool:
        return self.broken or len(self.tokens) == self.ask.max_nodes

    @property
    def row(self) -> PageRow:
        known = self.ask.sequence.tokens
        token = self.tokens[-1] if self.tokens else known[-1]
        return PageRow(self.ask.sequence, token, len(known) - 1 + len(self.tokens), self.table)

    @property
    def spot(self) -> Spot:
        return Spot(self.ask.sequence, tuple(self.tokens))

    def grow(self, token: int) -> None:
        self.broken = token == NO_TOKEN
        if not self.broken:
            self.tokens.append(token)


class SparseDrafter:
    """Draws with the engine's sampler, so a draft is wrong only where what was not read matters.

    Its rows write provisional KV into slots behind the sequence's last row that are leased for the
    draft, and verification overwrites them before a block can be committed. A sequence is drafted
    for when its pages have been scored lately: the first `propose` asks for that and no more.
    """

    name = "sparse"

    def __init__(
        self, runner: PageRunner, sampler: Sampler, options: SparseOptions | None = None
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._options = options or SparseOptions()
        self._scores: dict[Sequence, PageScores] = {}  # of the last verification

    def begin(self, sequence: Sequence, hints: Hints) -> None: ...

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        tables = [self._table_of(ask) for ask in asks]
        for ask in asks:
            scores = self._scores[ask.sequence] = PageScores(ask.sequence)
            self._runner.score_pages(scores)
        chains = {
            place: _Chain(ask, table)
            for place, (ask, table) in enumerate(zip(asks, tables, strict=True))
            if table is not None
        }
        while live := [chain for chain in chains.values() if not chain.done]:
            self._grow(live)
        return [Draft(tuple(chains[i].tokens if i in chains else ())) for i in range(len(asks))]

    def observe(self, verdicts: Seq[Verdict]) -> None: ...

    def end(self, sequence: Sequence) -> None:
        self._scores.pop(sequence, None)

    def _grow(self, chains: Seq[_Chain]) -> None:
        """A token more for each, in one forward."""
        hidden = self._runner.forward_pages([chain.row for chain in chains])
        spots = [chain.spot for chain in chains]
        drawn = self._sampler.draw(self._runner.logits(hidden), spots)
        for chain, token in zip(chains, drawn, strict=True):
            chain.grow(token)

    def _table_of(self, ask: Ask) -> PageTable | None:
        """None: rows before the last one are not computed yet, or the scores are too old."""
        sequence, options, config = ask.sequence, self._options, self._runner.model.config
        last = len(sequence.tokens) - 1
        if sequence.num_computed != last:
            return None
        size = sequence.block_tokens
        tokens = last + ask.max_nodes
        budget = page_budget(tokens, options.ratio, options.min_tokens, size)
        end = -(-tokens // size)
        if end <= budget:
            every = np.empty((config.num_layers, config.num_kv_heads, 0), dtype=np.float32)
            return make_table(every, 0, end, 0, config.windows)
        scores = self._scores.get(sequence)
        if scores is None or scores.shares is None or 2 * (last - scores.root) > budget * size:
            return None
        tail = scores.root // size
        count = max(1, budget - (end - tail))
        return make_table(scores.shares, tail, end, count, config.windows, options.choose)
