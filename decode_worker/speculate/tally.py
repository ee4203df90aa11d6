"""Counts what speculation does: a few microseconds per sequence and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from decode_worker.speculate.policy import StepLoad
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import Draft
from triptych.obs.speculation import POSITIONS, SpeculationMetrics

_LAST = len(POSITIONS) - 1  # positions beyond share the last label


class Tally:
    """Adds up a step first, then tells the metrics once: their locks cost more than a sum."""

    def __init__(self, metrics: SpeculationMetrics) -> None:
        self._metrics = metrics

    def rested(self, sequences: int) -> None:
        """Nobody was asked for them."""
        self._metrics.decisions.labels("", "off").inc(sequences)

    def drafted(
        self,
        load: StepLoad,
        proposed: Seq[Draft],
        kept: Seq[Draft],
        draft_seconds: Mapping[str, float],
    ) -> None:
        """Per candidate the draft that came and what the policy left of it."""
        if not draft_seconds:
            self.rested(len(proposed))
            return
        decisions = Counter(
            (draft.drafter, _decision(draft, rest))
            for draft, rest in zip(proposed, kept, strict=True)
        )
        for (drafter, decision), count in decisions.items():
            self._metrics.decisions.labels(drafter, decision).inc(count)
        for drafter, seconds in draft_seconds.items():
            self._metrics.draft_seconds.labels(drafter).inc(seconds)
        total = sum(draft_seconds.values())
        for candidate, draft in zip(load.candidates, proposed, strict=True):
            if draft.drafter:
                candidate.sequence.draft_seconds += total

    def verified(self, verdicts: Seq[Verdict], seconds: float) -> None:
        """A step's verdicts; seconds: of the step without its drafting."""
        with_draft = [verdict for verdict in verdicts if verdict.draft]
        if not with_draft:
            return
        self._metrics.verify_seconds.inc(seconds)
        sums: dict[tuple[str, str], Counter[str]] = {}
        positions: dict[str, tuple[list[int], list[int]]] = {}
        for verdict in with_draft:
            drafter = verdict.draft.drafter
            handoff = "remote" if verdict.sequence.prefilled_remotely else "home"
            total = sums.setdefault((drafter, handoff), Counter())
            total["rounds"] += 1
            total["drafted"] += len(verdict.draft)
            accepted_nodes = min(verdict.num_accepted, len(verdict.new_tokens))  # it may have ended
            total["accepted"] += accepted_nodes
            self._metrics.acceptance_length.labels(drafter).observe(len(verdict.new_tokens))
            drafted, accepted = positions.setdefault(drafter, ([0] * 9, [0] * 9))
            _count_positions(drafted, depth_of(verdict.draft))
            _count_positions(accepted, accepted_nodes)
        for labels, total in sums.items():
            self._metrics.rounds.labels(*labels).inc(total["rounds"])
            self._metrics.drafted.labels(*labels).inc(total["drafted"])
            self._metrics.accepted.labels(*labels).inc(total["accepted"])
        for drafter, (drafted, accepted) in positions.items():
            for position, label in enumerate(POSITIONS):
                if drafted[position]:
                    self._metrics.drafted_at.labels(drafter, label).inc(drafted[position])
                    self._metrics.accepted_at.labels(drafter, label).inc(accepted[position])


def depth_of(draft: Draft) -> int:
    """Of the deepest node; 0: there is none."""
    return len(draft) if draft.parents is None else max(draft.depths(), default=0)


def _count_positions(counts: list[int], depth: int) -> None:
    for position in range(min(depth, _LAST)):
        counts[position] += 1
    counts[_LAST] += max(0, depth - _LAST)


def _decision(draft: Draft, kept: Draft) -> str:
    if not draft.drafter:
        return "off"
    if not draft:
        return "empty"
    return "verified" if kept else "trimmed"
