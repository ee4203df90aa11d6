"""Who may be chosen, and how busy everybody is: shared by all policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.placement.request import Placement, PlacementRequest
from transport.registry import WorkerView
from triptych.errors import CapacityError

_MAX_SPARES = 2

Rank = Callable[[Sequence[WorkerView]], Sequence[WorkerView]]  # best first


def homes(model: str, workers: Sequence[WorkerView]) -> list[WorkerView]:
    """The decode workers that take new requests for `model`."""
    return usable("decode", model, workers)


def home_candidates(
    request: PlacementRequest, workers: Sequence[WorkerView]
) -> Sequence[WorkerView]:
    """In turn, so that the first of equals is another one each time. Raises CapacityError."""
    found = [
        view for view in homes(request.model, workers) if view.worker_id not in request.excluded
    ]
    if not found:
        raise CapacityError(
            f"no decode worker for {request.model} takes requests at the moment; try again later"
        )
    return _in_turn(found, request.turn)


def prefill_candidates(
    request: PlacementRequest, workers: Sequence[WorkerView]
) -> Sequence[WorkerView]:
    """In turn; maybe none."""
    return _in_turn(usable("prefill", request.model, workers), request.turn)


def placed(
    request: PlacementRequest,
    workers: Sequence[WorkerView],
    *,
    home: Rank,
    prefill: Rank,
    reason: str,
) -> Placement:
    """The best home and the best prefill worker, whoever the other is; the next ones are spares."""
    best = home(home_candidates(request, workers))[0]
    candidates = prefill_candidates(request, workers)
    if not candidates:
        return Placement(best, None, reason)
    first, *others = prefill(candidates)
    return Placement(best, first, reason, tuple(others[:_MAX_SPARES]))


def spares_of(ranked: Sequence[WorkerView], first: WorkerView) -> tuple[WorkerView, ...]:
    """Whom to ask when `first` fails, best first."""
    return tuple(view for view in ranked if view is not first)[:_MAX_SPARES]


def sequences_at(request: PlacementRequest, view: WorkerView) -> int:
    """Reported, or sent by us since: reports are up to a quarter of a second old."""
    return max(view.running + view.waiting, request.choices.get(view.worker_id, 0))


def queued_at(request: PlacementRequest, view: WorkerView) -> int:
    """Prompt tokens, alike."""
    return max(view.queued_tokens, request.prefilling.get(view.worker_id, 0))


def usable(role: str, model: str, workers: Sequence[WorkerView]) -> list[WorkerView]:
    return [
        view for view in workers if view.role == role and view.model == model and not view.draining
    ]


def _in_turn(views: Sequence[WorkerView], turn: int) -> Sequence[WorkerView]:
    if not views:
        return views
    start = turn % len(views)
    return [*views[start:], *views[:start]]
