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
        sums: dict[tuple[str, str], list[int]] = {}  # rounds, drafted, accepted
        depths: dict[str, tuple[list[int], list[int]]] = {}  # drafted, accepted; of each draft
        lengths: dict[str, list[int]] = {}
        for sequence, draft, path, new_tokens, *_ in with_draft:
            handoff = "remote" if sequence.prefilled_remotely else "home"
            accepted = min(len(path), len(new_tokens))  # it may have ended
            total = sums.setdefault((draft.drafter, handoff), [0, 0, 0])
            total[0] += 1
            total[1] += len(draft.tokens)
            total[2] += accepted
            of_drafter = depths.setdefault(draft.drafter, ([], []))
            of_drafter[0].append(depth_of(draft))
            of_drafter[1].append(accepted)
            lengths.setdefault(draft.drafter, []).append(len(new_tokens))
        self._tell(sums, depths, lengths)

    def _tell(
        self,
        sums: Mapping[tuple[str, str], Seq[int]],
        depths: Mapping[str, tuple[Seq[int], Seq[int]]],
        lengths: Mapping[str, Seq[int]],
    ) -> None:
        metrics = self._metrics
        for labels, (rounds, drafted, accepted) in sums.items():
            metrics.rounds.labels(*labels).inc(rounds)
            metrics.drafted.labels(*labels).inc(drafted)
            metrics.accepted.labels(*labels).inc(accepted)
        for drafter, (of_drafts, of_paths) in depths.items():
            for counter, counts in (
                (metrics.drafted_at, reached(of_drafts)),
                (metrics.accepted_at, reached(of_paths)),
            ):
                for label, count in zip(POSITIONS, counts, strict=True):
                    if count:
                        counter.labels(drafter, label).inc(count)
        for drafter, own in lengths.items():
            histogram = metrics.acceptance_length.labels(drafter)
            for length in own:
                histogram.observe(length)


def depth_of(draft: Draft) -> int:
    """Of the deepest node; 0: there is none."""
    return len(draft) if draft.parents is None else max(draft.depths(), default=0)


def reached(depths: Seq[int]) -> list[int]:
    """By position: how many got there. Positions beyond the last label count one by one."""
    counts = [sum(depth > position for depth in depths) for position in range(_LAST)]
    return [*counts, sum(max(0, depth - _LAST) for depth in depths)]


def _decision(draft: Draft, kept: Draft) -> str:
    if not draft.drafter:
        return "off"
    if not draft:
        return "empty"
    return "verified" if kept else "trimmed"
