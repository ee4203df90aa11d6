"""Drafters whose failures cost drafts and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from typing import TypeVar

from torch import Tensor

from triptych.drafters.drafter import Ask, Drafter, Hints, TapDrafter, Verdict
from triptych.engine.draft import NO_DRAFT, Draft
from triptych.engine.sequence import Sequence
from triptych.obs.speculation import DrafterMetrics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Contained:
    """Drafters by name. One that raises, whatever it was asked to do, or answers what no drafter
    may, is switched off: it is not called again, and its drafts are empty from then on.
    """

    def __init__(
        self, drafters: Mapping[str, Drafter], vocab_size: int, metrics: DrafterMetrics
    ) -> None:
        self.names = tuple(drafters)  # those switched off too: a request may go on naming them
        self._working = dict(drafters)
        self.working = self.names
        self._tapped = {
            name: drafter
            for name, drafter in drafters.items()
            if isinstance(drafter, TapDrafter) and drafter.taps
        }
        # Layers, of those that work.
        self.readers = {name: drafter.taps for name, drafter in self._tapped.items()}
        self.window = max((drafter.window for drafter in self._tapped.values()), default=0)
        self._vocab_size = vocab_size
        self._metrics = metrics
        for name in drafters:
            metrics.enabled.labels(name).set(1)

    def drafter(self, name: str) -> Drafter:
        return self._working[name]

    def begin(self, sequence: Sequence, hints: Hints) -> None:
        self._tell_all("begin", lambda drafter: drafter.begin(sequence, hints))

    def observe(self, verdicts: Seq[Verdict]) -> None:
        self._tell_all("observe", lambda drafter: drafter.observe(verdicts))

    def feed(self, name: str, sequence: Sequence, start: int, taps: Tensor) -> None:
        """See TapDrafter; to one of `readers`."""
        if name in self.readers:
            feed = self._tapped[name].feed
            self._guarded(name, "feed", partial(feed, sequence, start, taps))

    def end(self, sequence: Sequence) -> None:
        self._tell_all("end", lambda drafter: drafter.end(sequence))

    def propose(self, name: str, asks: Seq[Ask]) -> list[Draft]:
        """A draft per ask, in order, of at most `max_nodes` tokens of the vocabulary."""
        drafter = self._working.get(name)
        none = [NO_DRAFT] * len(asks)
        if drafter is None:
            return none
        made = self._guarded(name, "propose", partial(_propose, drafter, asks, self._vocab_size))
        return none if made is None else [_named(draft, name) for draft in made]

    def _tell_all(self, verb: str, tell: Callable[[Drafter], None]) -> None:
        for name, drafter in list(self._working.items()):
            self._guarded(name, verb, partial(tell, drafter))

    def _guarded(self, name: str, verb: str, call: Callable[[], _T]) -> _T | None:
        try:
            return call()
        except Exception:
            del self._working[name]
            self.working = tuple(self._working)
            self.readers.pop(name, None)
            self._metrics.failures.labels(name, verb).inc()
            self._metrics.enabled.labels(name).set(0)
            _log.exception(
                "drafter %s failed in %s and is switched off; requests go on without its drafts. "
                "Restart the worker to use it again, or take it out of speculation.drafters",
                name,
                verb,
            )
            return None


def _named(draft: Draft, name: str) -> Draft:
    return draft if draft.drafter == name else replace(draft, drafter=name)


def _propose(drafter: Drafter, asks: Seq[Ask], vocab_size: int) -> list[Draft]:
    """Raises what the drafter raises, and ValueError for an answer that no drafter may give."""
    drafts = drafter.propose(asks)
    if len(drafts) != len(asks):
        raise ValueError(f"{len(drafts)} drafts for {len(asks)} asks")
    pairs = zip(drafts, asks, strict=True)
    return [sound(draft, ask.max_nodes, vocab_size) for draft, ask in pairs]


def sound(draft: Draft, max_nodes: int, vocab_size: int) -> Draft:
    """Without nodes beyond `max_nodes` and tokens outside the vocabulary. Raises ValueError for a
    tree that is none and for a confidence that is no probability.
    """
    size = len(draft.tokens)
    if draft.parents is not None and len(draft.parents) != size:
        raise ValueError(f"{len(draft.parents)} parents for {size} tokens")
    if draft.confidence and len(draft.confidence) != size:
        raise ValueError(f"{len(draft.confidence)} confidences for {size} tokens")
    if not size:
        return draft
    confidence = draft.confidence
    # The sum finds what is no number: all comparisons with that are false, and min may pass it by.
    if confidence and not (min(confidence) >= 0 and max(confidence) <= 1 and sum(confidence) >= 0):
        raise ValueError(f"confidence beyond 0 and 1: {confidence}")
    if min(draft.tokens) < 0 or max(draft.tokens) >= vocab_size:
        draft = draft.kept([0 <= token < vocab_size for token in draft.tokens])
    return draft if len(draft.tokens) <= max_nodes else draft.first(max_nodes)
