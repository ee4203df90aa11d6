"""Two rules of other routers that look at cached prefixes, as their sources state them."""

from __future__ import annotations

from collections.abc import Sequence

from router.placement.candidates import placed, queued_at, sequences_at
from router.placement.request import Placement, PlacementRequest
from router.placement.simple import burden
from transport.registry import WorkerView

# sgl-router, policy cache_aware, its defaults.
_CACHE_THRESHOLD = 0.3  # of the prompt
_BALANCE_ABS = 64  # requests
_BALANCE_REL = 1.5

_PREFILL_LOAD_SCALE = 1.0  # Dynamo, --router-prefill-load-scale


def cache_aware(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """SGLang's rule: the longest cached prefix if that is more than 0.3 of the prompt, else the
    fewest requests; the fewest requests too when the busiest worker has more than 64 more than the
    idlest and more than 1.5 times as many. Homes, which get KV from elsewhere: the fewest requests.
    """

    def fewest(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(candidates, key=lambda view: sequences_at(request, view))

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        by_load = fewest(candidates)
        least, most = (sequences_at(request, by_load[index]) for index in (0, -1))
        if most - least > _BALANCE_ABS and most > least * _BALANCE_REL:
            return by_load
        best = max(by_load, key=request.cached_tokens)
        if request.cached_tokens(best) <= _CACHE_THRESHOLD * request.prompt_tokens:
            return by_load
        return [best, *(view for view in by_load if view is not best)]

    split = any(view.role == "prefill" for view in workers)
    return placed(
        request, workers, home=fewest if split else rank, prefill=rank, reason="cache-aware"
    )


def block_cost(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """Dynamo's cost: scale · max(prefill blocks under way + prompt blocks − cached ones, 0) +
    decode blocks. Lowest wins. Of homes that get their KV from elsewhere only the last term counts.
    """

    def decode_blocks(view: WorkerView) -> int:
        return view.num_blocks - view.free_blocks

    def cost(view: WorkerView) -> float:
        missing = request.prompt_tokens - request.cached_tokens(view)
        blocks = (queued_at(request, view) + missing) / max(1, view.block_tokens)
        return _PREFILL_LOAD_SCALE * max(blocks, 0.0) + decode_blocks(view)

    def rank(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(candidates, key=cost)

    def rank_homes(candidates: Sequence[WorkerView]) -> Sequence[WorkerView]:
        return sorted(candidates, key=lambda view: (decode_blocks(view), *burden(request, view)))

    split = any(view.role == "prefill" for view in workers)
    return placed(
        request, workers, home=rank_homes if split else rank, prefill=rank, reason="block-cost"
    )
