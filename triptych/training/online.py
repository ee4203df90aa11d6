"""A head that goes on learning from what was just verified (TLT, arXiv 2511.16665; ReSpec, arXiv
2510.26475): traffic becomes texts, texts become steps, and steps become versions.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.drafters.heads.head import DraftHead
from triptych.training.batches import Batch
from triptych.training.checkpoint import head_tensors
from triptych.training.learner import HeadLearner, Score, Settings
from triptych.training.teacher import Vocabulary

_PATIENCE = 4  # versions that are no better before learning begins anew from the one in use


class Traffic(NamedTuple):
    """Rows of one sequence, in order, as the target computed them when they were verified."""

    tokens: tuple[int, ...]  # of the rows, and the two behind the last one
    taps: Tensor  # bfloat16 [m, taps · H]
    final: Tensor  # bfloat16 [m, H], of the next positions: what each row should foresee


@dataclass(frozen=True, slots=True)
class OnlineSettings:
    rate: float = 2e-4
    batch_rows: int = 384  # a step of this size is short: a request that arrives waits at most it
    keep_rows: int = 16384  # of traffic; the oldest goes first
    held_out: int = 8  # one text of so many judges versions instead of teaching them
    steps_per_version: int = 24
    passes: int = 3


class DraftTrainer:
    """Texts come from the engine's thread; everything else is called from one other thread."""

    def __init__(
        self,
        head: DraftHead,
        weights: Mapping[str, Tensor],
        settings: OnlineSettings | None = None,
    ) -> None:
        """weights: the head's, in checkpoint names, float32 or bfloat16."""
        settings = self._settings = settings or OnlineSettings()
        self._base = head
        self._vocabulary = Vocabulary(head.place.target)
        learning = Settings(
            passes=settings.passes, peak_rate=settings.rate, warmup=0.0, first_alone=0.0
        )
        target = head.place.target.config
        self._learner = HeadLearner(head.config, target, head.token_ids, self._vocabulary, learning)
        self._good = self._previous = dict(weights)  # of the version in use; of the one before
        self._learner.load(self._good)
        self._lock = threading.Lock()
        self._texts: deque[Traffic] = deque()
        self._held: deque[Traffic] = deque(maxlen=16)
        self._num_offered = 0
        self._fresh_rows = 0  # that came since the last version
        self._version = head.config.version
        self._dice = random.Random(0)
        self._steps = 0
        self._missed = 0  # versions that were no better than the one in use

    def offer(self, traffic: Traffic) -> None:
        with self._lock:
            self._num_offered += 1
            if self._num_offered % self._settings.held_out == 0:
                self._held.append(traffic)
                return
            self._texts.append(traffic)
            self._fresh_rows += len(traffic.taps)
            while sum(len(text.taps) for text in self._texts) > self._settings.keep_rows:
                self._texts.popleft()

    @property
    def has_work(self) -> bool:
        """There is new traffic, or a version is under way."""
        return self._fresh_rows >= self._settings.batch_rows or self._steps > 0

    def learn(self) -> DraftHead | None:
        """One short step; a new version when enough were made and held-out traffic likes it."""
        batch = self._batch()
        if batch is None:
            return None
        self._learner.learn(batch)
        self._steps += 1
        if self._steps < self._settings.steps_per_version:
            return None
        self._steps = 0
        with self._lock:
            self._fresh_rows = 0
        return self._version_if_better()

    def rolled_back(self) -> None:
        """The last version fell: learning goes on from the one before."""
        self._good = self._previous
        self._learner.load(self._good)

    def _version_if_better(self) -> DraftHead | None:
        with self._lock:
            held = list(self._held)
        learned = head_tensors(self._learner)
        if held:
            after = self._score(held)
            self._learner.load(self._good)
            before = self._score(held)
            if after.tokens_per_round <= before.tokens_per_round:
                self._missed = (self._missed + 1) % _PATIENCE
                if self._missed:
                    self._learner.load(learned)  # the next steps may do it
                return None
            self._learner.load(learned)
        self._missed = 0
        self._previous, self._good = self._good, learned
        self._version += 1
        return self._base.successor(self._version, learned)

    def _score(self, texts: list[Traffic]) -> Score:
        return self._learner.score(_collate(texts, self._vocabulary))

    def _batch(self) -> Batch | None:
        with self._lock:
            texts = list(self._texts)
        if not texts:
            return None
        chosen, rows = [], 0
        self._dice.shuffle(texts)
        for text in texts:
            if rows and rows + len(text.taps) > self._settings.batch_rows:
                break
            chosen.append(text)
            rows += len(text.taps)
        return _collate(chosen, self._vocabulary)


def _collate(texts: list[Traffic], vocabulary: Vocabulary) -> Batch:
    parts = []
    for text in texts:
        tokens = torch.tensor(text.tokens)
        rows = len(text.taps)
        counts = torch.ones(rows, dtype=torch.bool)
        embedded = vocabulary.embedded(tokens[1 : rows + 1])
        parts.append(Batch(embedded, text.taps, text.final, tokens[2 : rows + 2], counts))
    return Batch(*(pad_sequence(list(part), batch_first=True) for part in zip(*parts, strict=True)))
