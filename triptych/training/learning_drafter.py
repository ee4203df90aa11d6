"""A head that drafts and is taught meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from triptych.drafters.drafter import Ask, Hints, Verdict
from triptych.drafters.heads.drafter import HeadDrafter
from triptych.drafters.heads.head import DraftHead
from triptych.engine.draft import Draft
from triptych.engine.sequence import Sequence
from triptych.training.online import Traffic
from triptych.training.versions import VersionWatch

_log = logging.getLogger(__name__)

_MOST_ROWS = 512  # of a sequence: the last ones
_FEWEST_ROWS = 16


@dataclass(slots=True)
class _Text:
    """What was seen of a sequence: rows [start, end)."""

    start: int = 0
    end: int = 0
    parts: list[Tensor] = field(default_factory=list)  # bfloat16, with the last layer's at the end

    def add(self, start: int, taps: Tensor) -> None:
        if start != self.end:
            self.parts, self.start = [], start
        self.parts.append(taps.bfloat16())
        self.end = start + len(taps)
        while self.end - self.start - len(self.parts[0]) > _MOST_ROWS:
            self.start += len(self.parts.pop(0))


class LearningHead:
    """Passes on what a HeadDrafter does, keeps what verification showed, and swaps versions between
    two steps; a version whose drafts are accepted less goes back to the one before.
    """

    def __init__(
        self,
        drafter: HeadDrafter,
        offer: Callable[[Traffic], None],
        rolled_back: Callable[[], None],
    ) -> None:
        self.name = drafter.name
        self.watch = VersionWatch()
        self.num_rollbacks = 0
        self._drafter = drafter
        self._offer = offer
        self._rolled_back = rolled_back
        self._before: DraftHead | None = None
        self._next: DraftHead | None = None  # set by the thread that trains
        self._texts: dict[Sequence, _Text] = {}
        target = drafter.head.place.target
        self._norm = target.norm
        self._size = target.config.hidden_size
        self._read = len(drafter.taps) * self._size  # columns that the head reads
        self.taps = tuple(sorted({*drafter.taps, target.config.num_layers - 1}))
        self.window = drafter.window

    @property
    def head(self) -> DraftHead:
        """In use."""
        return self._drafter.head

    @property
    def version(self) -> int:
        return self.head.config.version

    def publish(self, head: DraftHead) -> None:
        """From any thread: the next draft is made with it."""
        self._next = head

    @property
    def is_ready(self) -> bool:
        """The version in use has been judged: another may come."""
        return self._next is None and (self._before is None or self.watch.is_settled)

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._texts[sequence] = _Text()
        self._drafter.begin(sequence, hints)

    def end(self, sequence: Sequence) -> None:
        self._drafter.end(sequence)
        text = self._texts.pop(sequence, None)
        if text is not None and text.end - text.start >= _FEWEST_ROWS:
            self._offer(self._traffic(sequence, text))

    def feed(self, sequence: Sequence, start: int, taps: Tensor) -> None:
        text = self._texts.get(sequence)
        if text is not None:
            skipped = max(0, len(taps) - _MOST_ROWS)
            text.add(start + skipped, taps[skipped:])
        self._drafter.feed(sequence, start, taps[:, : self._read])

    def propose(self, asks: Seq[Ask]) -> list[Draft]:
        head, self._next = self._next, None
        if head is not None:
            self._before = self._drafter.head
            self._drafter.load(head)
            self.watch.swapped()
            _log.info("drafter %s: version %d is in use", self.name, self.version)
        return self._drafter.propose(asks)

    def observe(self, verdicts: Seq[Verdict]) -> None:
        self._drafter.observe(verdicts)
        for verdict in verdicts:
            if verdict.draft.drafter == self.name and len(verdict.draft):
                self.watch.add(verdict.num_accepted)
        if self.watch.has_fallen and self._before is not None:
            _log.warning(
                "drafter %s: acceptance fell with version %d; back to version %d",
                self.name,
                self.version,
                self._before.config.version,
            )
            self._drafter.load(self._before)
            self._before = None
            self.watch.rolled_back()
            self.num_rollbacks += 1
            self._rolled_back()

    @torch.inference_mode()
    def _traffic(self, sequence: Sequence, text: _Text) -> Traffic:
        """Row t is taught by what the target thought one position later: its last layer, normed."""
        states = torch.cat(text.parts)
        rows = min(len(states) - 1, len(sequence.tokens) - text.start - 2)
        final = self._norm(states[1 : rows + 1, -self._size :].float())
        tokens = tuple(sequence.tokens[text.start : text.start + rows + 2])
        return Traffic(tokens, states[:rows, : self._read].clone(), final.bfloat16())
