"""Rules of other routers, which ours is compared with."""

from __future__ import annotations

from typing import Any

from router.index.hit import PrefixHit
from router.placement import PlacementRequest
from router.placement.prefix import block_cost, cache_aware
from triptych.testing.views import worker_view as worker

HOME = worker("d0")


def asked(tokens: int = 160, turn: int = 0, **blocks: int) -> PlacementRequest:
    """With so many cached blocks, of 16 tokens, at each worker."""
    cached = {worker_id: PrefixHit(count) for worker_id, count in blocks.items()}
    return PlacementRequest("tiny", turn, prompt_tokens=tokens, cached=cached)


def prefill_of(policy: Any, request: PlacementRequest, *pool: Any) -> str:
    placement = policy(request, [HOME, *pool])
    assert placement.prefill is not None
    return str(placement.prefill.worker_id)


def test_cache_aware_goes_where_most_of_the_prompt_is() -> None:
    pool = worker("p0", "prefill"), worker("p1", "prefill", waiting=60)
    assert prefill_of(cache_aware, asked(p0=4, p1=5), *pool) == "p1"


def test_cache_aware_ignores_a_prefix_of_less_than_a_third() -> None:
    pool = worker("p0", "prefill"), worker("p1", "prefill", waiting=1)
    assert prefill_of(cache_aware, asked(p1=3), *pool) == "p0"


def test_cache_aware_gives_up_the_prefix_when_its_holder_has_far_more_requests() -> None:
    pool = worker("p0", "prefill"), worker("p1", "prefill", waiting=65)
    assert prefill_of(cache_aware, asked(p1=9), *pool) == "p0"


def test_cache_aware_keeps_the_prefix_when_all_are_about_as_busy() -> None:
    pool = worker("p0", "prefill", waiting=200), worker("p1", "prefill", waiting=270)
    assert prefill_of(cache_aware, asked(p1=9), *pool) == "p1"


def test_without_prefill_workers_cache_aware_looks_at_the_homes_prefixes() -> None:
    workers = [worker("d0"), worker("d1", running=3)]
    assert cache_aware(asked(d1=8), workers).decode.worker_id == "d1"


def test_block_cost_weighs_a_prefix_against_queued_blocks() -> None:
    near, far = worker("p0", "prefill", queued_tokens=32), worker("p1", "prefill")
    assert prefill_of(block_cost, asked(p0=3), near, far) == "p0"  # 9 blocks against 10
    assert prefill_of(block_cost, asked(p0=1), near, far) == "p1"  # 11 against 10


def test_block_cost_takes_the_home_with_the_fewest_blocks_in_use() -> None:
    workers = [worker("d0", free_blocks=10), worker("d1", free_blocks=40, running=9)]
    workers.append(worker("p0", "prefill"))
    assert block_cost(asked(d0=9), workers).decode.worker_id == "d1"
