"""Switches between two drafters inside a sequence: by how sure the target is of what comes next.

Drafters differ in where they are good: some where the text is certain, some where it is not
(WhiFlash, arXiv 2606.07710). So what a draft brings is learned per drafter and per entropy of the
target's last distribution, and each draft is asked of the one that promises more tokens per time.
Who is not asked catches up when it is: drafters take in what they missed by themselves.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from triptych.drafters.drafter import Ask, Drafter, Hints, TapDrafter, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence
from triptych.models.taps import pick_layers

_EDGES = (0.05, 0.3, 1.0, 2.0, 3.5)  # nats: from certain to open
_UNKNOWN = len(_EDGES) + 1
_FADE = 0.95  # what is learned follows the last twenty drafts or so
_EXPLORE = 16  # each drafter's share of a bucket is one draft of so many, at least


@dataclass(slots=True)
class _Record:
    """Of a drafter's drafts in one bucket."""

    tokens: float = 1.0  # accepted per draft
    drafts: int = 0

    def learn(self, accepted: int) -> None:
        fade = min(_FADE, self.drafts / (self.drafts + 1))
        self.tokens = fade * self.tokens + (1 - fade) * accepted
        self.drafts += 1


@dataclass(slots=True)
class Gate:
    """Chooses; pure but for what it has learned."""

    num_drafters: int
    records: defaultdict[tuple[int, int], _Record] = field(
        default_factory=lambda: defaultdict(_Record)
    )

    def choose(self, bucket: int, seconds: Seq[float], step_seconds: float) -> int:
        """seconds: of a draft of each drafter; step_seconds: of the rest of a round."""
        own = [self.records[drafter, bucket] for drafter in range(self.num_drafters)]
        total = sum(record.drafts for record in own)
        rare = min(range(self.num_drafters), key=lambda i: own[i].drafts)
        if own[rare].drafts * _EXPLORE <= total:
            return rare
        rates = [
            (1 + record.tokens) / (step_seconds + cost)
            for record, cost in zip(own, seconds, strict=True)
        ]
        return max(range(self.num_drafters), key=lambda i: rates[i])

    def learn(self, drafter: int, bucket: int, accepted: int) -> None:
        self.records[drafter, bucket].learn(accepted)


def bucket_of(entropy: float) -> int:
    return sum(entropy >= edge for edge in _EDGES)


def entropy_of(logits: Tensor) -> float:
    """Of softmax(logits [V]), in nats."""
    log_probs = torch.log_softmax(logits, -1)
    return float(-(log_probs.exp() * log_probs).nan_to_num().sum())


class SwitchingDrafter:
    """Looks like one drafter; its drafts carry its name."""

    def __init__(
        self,
        drafters: Seq[Drafter],
        name: str = "switching",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert len(drafters) >= 2, "nothing to switch between"
        self.name = name
        self._drafters = tuple(drafters)
        self._clock = clock
        self._gate = Gate(len(drafters))
        self._buckets: dict[Sequence, int] = {}
        self._asked: dict[Sequence, tuple[int, Draft]] = {}
        self._seconds = [0.0] * len(drafters)  # of a draft
        self._step_seconds = 0.0
        self._observed_at = 0.0
        readers = [drafter for drafter in drafters if isinstance(drafter, TapDrafter)]
        self._readers = tuple(readers)
        self.taps = tuple(sorted({layer for reader in readers for layer in reader.taps}))
        self.window = max((reader.window for reader in readers), default=0)

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._buckets[sequence] = _UNKNOWN
        for drafter in self._drafters:
            drafter.begin(sequence, hints)

    def end(self, sequence: Sequence) -> None:
        self._buckets.pop(sequence, None)
        self._asked.pop(sequence, None)
        for drafter in self._drafters:
            drafter.end(sequence)

    def feed(self, sequence: Sequence, start: int, taps: Tensor) -> None:
        for reader in self._readers:
            reader.feed(sequence, start, pick_layers(taps, self.taps, reader.taps))

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        chosen = [self._choose(ask.sequence) for ask in asks]
        drafts = [NO_DRAFT] * len(asks)
        for index, drafter in enumerate(self._drafters):
            places = [place for place, choice in enumerate(chosen) if choice == index]
            if not places:
                continue
            began = self._clock()
            made = drafter.propose([asks[place] for place in places])
            self._learn_cost(index, (self._clock() - began) / len(places))
            for place, draft in zip(places, made, strict=True):
                drafts[place] = replace(draft, drafter=self.name)
                self._asked[asks[place].sequence] = index, drafts[place]
        self._observed_at = self._clock()
        return drafts

    def observe(self, verdicts: Seq[Verdict]) -> None:
        if self._observed_at:
            step = self._clock() - self._observed_at
            self._step_seconds = _moving(self._step_seconds, step)
            self._observed_at = 0.0
        for verdict in verdicts:
            asked = self._asked.pop(verdict.sequence, None)
            if asked is not None and _was_tried(asked[1], verdict.draft):
                bucket = self._buckets.get(verdict.sequence, _UNKNOWN)
                self._gate.learn(asked[0], bucket, verdict.num_accepted)
            if verdict.logits is not None and verdict.sequence in self._buckets:
                self._buckets[verdict.sequence] = bucket_of(entropy_of(verdict.logits))
        for drafter in self._drafters:
            drafter.observe(verdicts)

    def _choose(self, sequence: Sequence) -> int:
        bucket = self._buckets.get(sequence, _UNKNOWN)
        return self._gate.choose(bucket, self._seconds, max(self._step_seconds, 1e-6))

    def _learn_cost(self, index: int, seconds: float) -> None:
        self._seconds[index] = _moving(self._seconds[index], seconds)


def _was_tried(asked: Draft, verified: Draft) -> bool:
    """A draft that was trimmed away says nothing of its drafter; one that was empty does."""
    return len(asked) == 0 or len(verified) > 0


def _moving(mean: float, value: float) -> float:
    return value if mean == 0.0 or math.isnan(mean) else _FADE * mean + (1 - _FADE) * value
