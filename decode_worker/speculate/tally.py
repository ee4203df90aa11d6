"""Counts what speculation does: a few microseconds per sequence and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq

from decode_worker.speculate.policy import StepLoad
from triptych.drafters.drafter import Verdict
from triptych.engine.draft import Draft
from triptych.obs.speculation import POSITIONS, SpeculationMetrics

STEPS = 16  # that metrics lag behind, at most
_LAST = len(POSITIONS) - 1  # positions beyond share the last label


class Tally:
    """Adds up here and tells the metrics now and then: their locks cost more than a sum."""

    def __init__(self, metrics: SpeculationMetrics) -> None:
        self._metrics = metrics
        self._forget()

    def _forget(self) -> None:
        self._steps = 0
        self._verify_seconds = 0.0
        self._decisions = Counter[tuple[str, str]]()
        self._draft_seconds = Counter[str]()
        self._sums: dict[tuple[str, str], _Sums] = {}

    def rested(self, sequences: int) -> None:
        """Nobody was asked for them."""
        self._decisions["", "off"] += sequences

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
        self._decisions.update(map(_decision, proposed, kept))
        self._draft_seconds.update(draft_seconds)
        total = sum(draft_seconds.values())
        for candidate, draft in zip(load.candidates, proposed, strict=True):
            if draft.drafter:
                candidate.sequence.draft_seconds += total

    def verified(self, verdicts: Seq[Verdict], seconds: float) -> None:
        """A step's verdicts; seconds: of the step without its drafting."""
        with_draft = [verdict for verdict in verdicts if verdict.draft.tokens]
        if with_draft:
            self._verify_seconds += seconds
        for verdict in with_draft:
            handoff = "remote" if verdict.sequence.prefilled_remotely else "home"
            labels = verdict.draft.drafter, handoff
            sums = self._sums.get(labels)
            if sums is None:
                sums = self._sums[labels] = _Sums()
            sums.add(verdict)

    def step_ends(self, *, idle: bool) -> None:
        """idle: nobody is left who decodes; then nothing is held back."""
        self._steps += 1
        if idle or self._steps >= STEPS:
            self._tell()
            self._forget()

    def _tell(self) -> None:
        metrics = self._metrics
        for labels, count in self._decisions.items():
            metrics.decisions.labels(*labels).inc(count)
        for drafter, seconds in self._draft_seconds.items():
            metrics.draft_seconds.labels(drafter).inc(seconds)
        metrics.verify_seconds.inc(self._verify_seconds)
        for of, sums in self._sums.items():
            metrics.rounds.labels(*of).inc(len(sums.depths))
            metrics.drafted.labels(*of).inc(sums.drafted)
            metrics.accepted.labels(*of).inc(sum(sums.accepted))
            self._tell_positions(of[0], sums)

    def _tell_positions(self, drafter: str, sums: _Sums) -> None:
        metrics = self._metrics
        for counter, depths in (
            (metrics.drafted_at, sums.depths),
            (metrics.accepted_at, sums.accepted),
        ):
            for label, count in zip(POSITIONS, reached(depths), strict=True):
                if count:
                    counter.labels(drafter, label).inc(count)
        histogram = metrics.acceptance_length.labels(drafter)
        for length in sums.lengths:
            histogram.observe(length)


class _Sums:
    """Of drafts that share their labels."""

    __slots__ = ("accepted", "depths", "drafted", "lengths")

    def __init__(self) -> None:
        self.drafted = 0  # nodes
        self.depths: list[int] = []  # of each draft
        self.accepted: list[int] = []
        self.lengths: list[int] = []  # tokens that it brought

    def add(self, verdict: Verdict) -> None:
        draft, tokens = verdict.draft, len(verdict.new_tokens)
        self.drafted += len(draft.tokens)
        self.depths.append(depth_of(draft))
        self.accepted.append(min(len(verdict.path), tokens))  # it may have ended
        self.lengths.append(tokens)


def depth_of(draft: Draft) -> int:
    """Of the deepest node; 0: there is none."""
    return len(draft.tokens) if draft.parents is None else max(draft.depths(), default=0)


def reached(depths: Seq[int]) -> list[int]:
    """By position: how many got there. Positions beyond the last label count one by one."""
    counts = [sum(depth > position for depth in depths) for position in range(_LAST)]
    return [*counts, sum(max(0, depth - _LAST) for depth in depths)]


def _decision(draft: Draft, kept: Draft) -> tuple[str, str]:
    """By drafter."""
    if not draft.drafter:
        return "", "off"
    if not draft.tokens:
        return draft.drafter, "empty"
    return draft.drafter, "verified" if kept.tokens else "trimmed"
