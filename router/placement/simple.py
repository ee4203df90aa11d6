"""Policies that look at load alone, or at nothing."""

from __future__ import annotations

from collections.abc import Sequence

from router.placement.candidates import placed, queued_at, sequences_at
from router.placement.request import Placement, PlacementRequest
from transport.registry import WorkerView

_MASK = (1 << 64) - 1


def round_robin(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """One after the other, whatever they report."""
    return placed(request, workers, home=list, prefill=list, reason="round-robin")


def least_loaded(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """The home with the fewest sequences, the prefill worker with the fewest queued prompt tokens.

    Then the other of the two, then most free blocks, then in turn.
    """

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(candidates, key=lambda view: burden(request, view))

    return placed(request, workers, home=rank, prefill=rank, reason="least-loaded")


def power_of_two(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """The less loaded of two that are drawn: routers that know the same do not all choose the same
    worker. "The power of two choices", Mitzenmacher, IEEE TPDS 2001.
    """

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        first, second = _draw_two(request.turn, len(candidates))
        drawn = sorted((first, second), key=lambda index: burden(request, candidates[index]))
        others = [view for index, view in enumerate(candidates) if index not in drawn]
        return [*(candidates[index] for index in dict.fromkeys(drawn)), *others]

    return placed(request, workers, home=rank, prefill=rank, reason="power-of-two")


def burden(request: PlacementRequest, view: WorkerView) -> tuple[int, int, int]:
    """Less is better. What a role spends its time on comes first."""
    sequences, tokens = sequences_at(request, view), queued_at(request, view)
    if view.role == "prefill":
        return tokens, sequences, -view.free_blocks
    return sequences, tokens, -view.free_blocks


def _draw_two(turn: int, count: int) -> tuple[int, int]:
    """Two different indices below `count` (of one: the same twice), a pure function of the turn."""
    mixed = _mix(turn)
    first = mixed % count
    return first, (first + 1 + (mixed >> 32) % max(1, count - 1)) % count


def _mix(number: int) -> int:
    """splitmix64: every bit of the number moves every bit of the result."""
    mixed = (number + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)
