"""What this router has under way at each worker; reports cannot know of it yet."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from router.placement.request import Placement, PlacementRequest, Sent


class UnderWay:
    def __init__(self) -> None:
        self._choices: Counter[str] = Counter()
        self._prefilling: Counter[str] = Counter()
        self._sent: defaultdict[str, list[Sent]] = defaultdict(list)

    @property
    def choices(self) -> Mapping[str, int]:
        """Open ones, by home's worker id."""
        return self._choices

    @property
    def prefilling(self) -> Mapping[str, int]:
        """Prompt tokens without an answer, by the id of the worker that computes them."""
        return self._prefilling

    @property
    def sent(self) -> Mapping[str, Sequence[Sent]]:
        """The prompts that those tokens are of."""
        return self._sent

    @contextlib.contextmanager
    def visit(self, worker_id: str, choices: int) -> Iterator[None]:
        """Counts choices at a home until the block ends."""
        _add(self._choices, worker_id, choices)
        try:
            yield
        finally:
            _add(self._choices, worker_id, -choices)

    @contextlib.contextmanager
    def prefill(self, placement: Placement, request: PlacementRequest) -> Iterator[None]:
        """Counts the prompt as queued where it is computed until the block ends."""
        worker_id, sent = placement.computing.worker_id, sent_with(placement, request)
        self._sent[worker_id].append(sent)
        _add(self._prefilling, worker_id, sent.tokens)
        try:
            yield
        finally:
            _add(self._prefilling, worker_id, -sent.tokens)
            self._sent[worker_id].remove(sent)
            if not self._sent[worker_id]:
                del self._sent[worker_id]


def sent_with(placement: Placement, request: PlacementRequest) -> Sent:
    missing = request.prompt_tokens - request.cached_tokens(placement.computing)
    seen = placement.prediction
    return Sent(request.now, missing, 0.0 if seen is None else seen.compute_s)


def _add(counter: Counter[str], key: str, amount: int) -> None:
    counter[key] += amount
    if not counter[key]:
        del counter[key]
