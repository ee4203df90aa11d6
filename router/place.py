"""Which home and which prefill worker a request gets. Values in, a value out.

A policy is one function of the `PlacementPolicy` shape. It sees what the workers last reported and
what this router has sent them since: reports are up to a quarter of a second old, a burst of
requests is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from router.index.hit import PrefixHit
from transport.registry import WorkerView
from triptych.errors import CapacityError

_MAX_SPARES = 2


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a policy may look at beside the workers."""

    model: str
    turn: int  # counts this router's placements; breaks ties, so that equals share the work
    choices: Mapping[str, int] = field(default_factory=dict)  # open here, by home's worker id
    prefilling: Mapping[str, int] = field(default_factory=dict)  # prompt tokens without an answer
    cached: Mapping[str, PrefixHit] = field(default_factory=dict)  # of this prompt, by worker id
    excluded: frozenset[str] = frozenset()  # worker ids that just failed this request


@dataclass(frozen=True, slots=True)
class Placement:
    decode: WorkerView
    prefill: WorkerView | None  # None: the home prefills by itself
    reason: str  # why this home, for the metrics
    spares: tuple[WorkerView, ...] = ()  # prefill workers to ask in turn when `prefill` fails


PlacementPolicy = Callable[[PlacementRequest, Sequence[WorkerView]], Placement]


def least_loaded(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """The home with the fewest sequences, the prefill worker with the fewest queued prompt tokens.

    Then the other of the two, then most free blocks, then in turn.
    """

    def burden(view: WorkerView) -> tuple[int, int, int]:
        sequences = max(view.running + view.waiting, request.choices.get(view.worker_id, 0))
        tokens = max(view.queued_tokens, request.prefilling.get(view.worker_id, 0))
        if view.role == "prefill":
            return tokens, sequences, -view.free_blocks
        return sequences, tokens, -view.free_blocks

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(_in_turn(candidates, request.turn), key=burden)

    return _place(request, workers, rank, "least-loaded")


def round_robin(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """One after the other, whatever they report."""

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return _in_turn(candidates, request.turn)

    return _place(request, workers, rank, "round-robin")


POLICIES: Mapping[Literal["least-loaded", "round-robin"], PlacementPolicy] = {
    "least-loaded": least_loaded,
    "round-robin": round_robin,
}


def homes(model: str, workers: Sequence[WorkerView]) -> list[WorkerView]:
    """The decode workers that take new requests for `model`."""
    return _usable("decode", model, workers)


def _place(
    request: PlacementRequest,
    workers: Sequence[WorkerView],
    rank: Callable[[Sequence[WorkerView]], Sequence[WorkerView]],  # best first
    reason: str,
) -> Placement:
    decode = [
        view
        for view in _usable("decode", request.model, workers)
        if view.worker_id not in request.excluded
    ]
    if not decode:
        raise CapacityError(
            f"no decode worker for {request.model} takes requests at the moment; try again later"
        )
    home = rank(decode)[0]
    prefill = _usable("prefill", request.model, workers)
    if not prefill:
        return Placement(home, None, reason)
    first, *others = rank(prefill)
    return Placement(home, first, reason, tuple(others[:_MAX_SPARES]))


def _usable(role: str, model: str, workers: Sequence[WorkerView]) -> list[WorkerView]:
    return [
        view for view in workers if view.role == role and view.model == model and not view.draining
    ]


def _in_turn(views: Sequence[WorkerView], turn: int) -> Sequence[WorkerView]:
    start = turn % len(views)
    return [*views[start:], *views[:start]]
