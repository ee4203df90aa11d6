"""How a head's draft grows: level by level, or all at once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from triptych.drafters.guess import Guesser
from triptych.drafters.heads.head import DraftHead
from triptych.drafters.tree_growth import GrowingTree
from triptych.engine.draft import ROOT, Draft
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence


@dataclass(slots=True)
class Round:
    """One draft under way. Rows [begin, end) are new to the head, `states` are the target's."""

    sequence: Sequence
    begin: int
    end: int
    first_block: int
    states: Tensor  # [end − begin, taps · H]
    tree: GrowingTree
    inputs: dict[int, Tensor] = field(default_factory=dict)  # of nodes: rows [H] for the layers
    outputs: dict[int, Tensor] = field(default_factory=dict)  # of nodes and ROOT: [H]

    def tokens(self) -> list[int]:
        """Of the new rows: each row's is the one behind it."""
        return self.sequence.tokens[self.begin + 1 : self.end + 1]

    def known_rows(self, draft: Draft) -> RowJob:
        return RowJob(self.sequence, self.begin, self.end, draft, self.first_block)

    def nodes(self, nodes: list[int]) -> RowJob:
        return RowJob(self.sequence, self.end, self.end, self.tree.part(nodes), self.first_block)


class Grower(Protocol):
    def grow(self, rounds: Seq[Round]) -> None:
        """Computes the new rows' KV, then fills the trees."""


class LevelByLevel:
    """EAGLE-3: a node's row joins its token with what the head made of the row above."""

    def __init__(self, head: DraftHead, guesser: Guesser) -> None:
        self._head = head
        self._guesser = guesser

    def grow(self, rounds: Seq[Round]) -> None:
        self._read(rounds)
        self._expand(rounds)
        while active := [round_ for round_ in rounds if round_.tree.frontier]:
            self._compute(active)
            self._expand(active)

    def _read(self, rounds: Seq[Round]) -> None:
        head = self._head
        embedded = head.embedded([token for round_ in rounds for token in round_.tokens()])
        known = head.known(torch.cat([round_.states for round_ in rounds]))
        jobs = [round_.known_rows(Draft(())) for round_ in rounds]
        hidden = head.layers(jobs, head.join(embedded, known))
        row = 0
        for round_ in rounds:
            row += round_.end - round_.begin
            round_.outputs[ROOT] = hidden[row - 1]

    def _compute(self, rounds: Seq[Round]) -> None:
        """Outputs of all frontiers. Nodes above them are run again with them: sixteen rows cost
        little more than one, and the tree is one job.
        """
        head = self._head
        new = [(round_, node) for round_ in rounds for node in round_.tree.frontier]
        embedded = head.embedded_drafts([round_.tree.tokens[node] for round_, node in new])
        above = torch.stack([round_.outputs[round_.tree.parents[node]] for round_, node in new])
        for (round_, node), row in zip(new, head.join(embedded, above), strict=True):
            round_.inputs[node] = row
        parts = [round_.tree.upper() for round_ in rounds]
        rows = [r.inputs[node] for r, nodes in zip(rounds, parts, strict=True) for node in nodes]
        jobs = [round_.nodes(nodes) for round_, nodes in zip(rounds, parts, strict=True)]
        hidden = iter(head.layers(jobs, torch.stack(rows)))
        for round_, nodes in zip(rounds, parts, strict=True):
            round_.outputs.update((node, next(hidden)) for node in nodes)

    def _expand(self, rounds: Seq[Round]) -> None:
        frontiers = [(round_, node) for round_ in rounds for node in round_.tree.frontier]
        rows = torch.stack([round_.outputs[node] for round_, node in frontiers])
        trees = [(round_.sequence, round_.tree) for round_ in rounds]
        self._guesser.expand(trees, self._head.logits(rows))


class AllAtOnce:
    """A parallel head: behind the last known row stand rows that know their distance from it."""

    def __init__(self, head: DraftHead, guesser: Guesser) -> None:
        assert head.marks is not None, "a parallel head has marks"
        self._head = head
        self._marks = head.marks
        self._guesser = guesser

    def grow(self, rounds: Seq[Round]) -> None:
        head, marks = self._head, self._marks
        embedded = head.embedded([token for round_ in rounds for token in round_.tokens()])
        known = head.known(torch.cat([round_.states for round_ in rounds]))
        jobs, rows, row = list[RowJob](), list[Tensor](), 0
        for round_ in rounds:
            begin, row = row, row + round_.end - round_.begin
            depth = min(round_.tree.max_nodes, len(marks) + 1)
            marked = embedded[row - 1] + marks[: depth - 1]
            rows.append(head.join(embedded[begin:row], known[begin:row]))
            if depth > 1:
                rows.append(head.join(marked, known[row - 1].expand(depth - 1, -1)))
            # What the marked rows' tokens are is not known yet, nor asked for.
            jobs.append(round_.known_rows(Draft((0,) * (depth - 1))))
        hidden = head.layers(jobs, torch.cat(rows))
        self._fill(rounds, jobs, hidden)

    def _fill(self, rounds: Seq[Round], jobs: Seq[RowJob], hidden: Tensor) -> None:
        """Level by level only what was computed at once is read: all of the sequences' logits of
        one distance, for the drawn path so far.
        """
        row, wanted, spans = 0, list[Tensor](), list[tuple[int, int]]()
        for job in jobs:
            row += job.num_rows
            begin = sum(map(len, wanted))
            wanted.append(hidden[row - len(job.draft) - 1 : row])
            spans.append((begin, begin + len(wanted[-1])))
        logits = self._head.logits(torch.cat(wanted))
        for distance in range(max(end - begin for begin, end in spans)):
            active = [
                (round_, begin + distance)
                for round_, (begin, end) in zip(rounds, spans, strict=True)
                if round_.tree.frontier and begin + distance < end
            ]
            if not active:
                return
            self._level([round_ for round_, _ in active], logits[[at for _, at in active]])

    def _level(self, rounds: Seq[Round], logits: Tensor) -> None:
        """logits [R, Vd], the same for all nodes of a level."""
        counts = torch.tensor([len(round_.tree.frontier) for round_ in rounds])
        trees = [(round_.sequence, round_.tree) for round_ in rounds]
        self._guesser.expand(trees, logits.repeat_interleave(counts, 0))


def make_grower(head: DraftHead, guesser: Guesser) -> Grower:
    return LevelByLevel(head, guesser) if head.marks is None else AllAtOnce(head, guesser)
