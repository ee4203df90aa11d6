"""What placements are told of prefix caches, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.index.hit import PrefixHit
from router.placement import POLICIES, PlacementRequest, least_loaded
from transport.kv_feed import publish_cache
from triptych.errors import CapacityError
from triptych.kv.hashing import extend_hashes, root_hash
from triptych.kv.pool import BlockPool
from triptych.testing.fake_worker import says
from triptych.testing.kv_workers import compute

BLOCK = 16  # tokens, of a fake worker
IDENTITY = "fake"
PROMPT = [7] * 70  # four blocks and a rest
Seen = list[Mapping[str, PrefixHit]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What each placement was told."""
    told: Seen = []

    def spy(request: PlacementRequest, workers: Any) -> Any:
        told.append(dict(request.cached))
        return least_loaded(request, workers)

    monkeypatch.setitem(POLICIES, "predicted", spy)  # type: ignore[arg-type]
    return told


async def ask(world: Any, prompt: list[int] = PROMPT, **fields: Any) -> Any:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 1, **fields}
    return await world.client.post("/v1/completions", json=body)


def fails(error: Exception) -> Any:
    return lambda request: [error]


def hashes_of(prompt: list[int], salt: str = "") -> list[bytes]:
    hashes: list[bytes] = []
    root = root_hash(model="", weights="", layout=IDENTITY, salt=salt)
    extend_hashes(hashes, prompt, BLOCK, root)
    return hashes


async def test_a_sibling_is_told_where_its_prompt_is_being_computed(
    start_world: Any, seen: Seen
) -> None:
    world, may_answer = await start_world(), asyncio.Event()
    worker = await world.add_worker(
        "decode-0",
        lambda request: [may_answer, *says([5])(request)],
        kv_identity=IDENTITY,
    )
    first = asyncio.create_task(ask(world))
    await worker.next_call()
    others = [ask(world), ask(world, PROMPT[:40]), ask(world, cache_salt="another-tenant")]
    asked = [asyncio.create_task(other) for other in others]
    for _ in asked:
        await worker.next_call()
    may_answer.set()
    for answer in (first, *asked):
        assert (await answer).status_code == 200
    assert seen == [{}, {"decode-0": PrefixHit(4)}, {"decode-0": PrefixHit(2)}, {}]


async def test_a_home_that_refused_is_not_expected_to_hold_anything(
    start_world: Any, seen: Seen
) -> None:
    world = await start_world()
    await world.add_worker("decode-0", fails(CapacityError("full")), kv_identity=IDENTITY)
    await world.add_worker("decode-1", says([5]), kv_identity=IDENTITY)
    for _ in range(3):
        assert (await ask(world)).status_code == 200
    assert all("decode-0" not in hits for hits in seen)
    assert seen[-1] == {"decode-1": PrefixHit(4)}


async def test_workers_of_other_weights_share_no_hit(start_world: Any, seen: Seen) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says([5]), kv_identity="old weights")
    await world.add_worker("decode-1", says([5]), kv_identity="new weights")
    for _ in range(3):
        await ask(world)
    assert seen[2] == {"decode-0": PrefixHit(4), "decode-1": PrefixHit(4)}
    assert len(seen[1]) == 1


async def test_a_block_that_ends_the_prompt_is_no_hit(start_world: Any, seen: Seen) -> None:
    world = await start_world()
    await world.add_worker("decode-0", says([5]), kv_identity=IDENTITY)
    for _ in range(2):
        await ask(world, [7] * 64)
    assert seen[1] == {"decode-0": PrefixHit(3)}


@pytest.mark.parametrize("cached", [64, 16])
async def test_what_a_worker_published_is_told_and_compared(
    start_world: Any, run_dir: Path, seen: Seen, cached: int
) -> None:
    world, pool = await start_world(), BlockPool(16)
    compute(pool, hashes_of(PROMPT))
    await world.add_worker("decode-0", says([5], cached_tokens=cached), kv_identity=IDENTITY)
    publishing = asyncio.create_task(
        publish_cache(f"unix:{run_dir}/router.sock", "decode-0", 1, pool)
    )
    await world.counted("triptych_router_kv_snapshots_total", worker="decode-0")
    await ask(world)
    publishing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await publishing
    assert seen == [{"decode-0": PrefixHit(4)}]

    def tokens(kind: str) -> float:
        found: float = world.metric(f"triptych_router_kv_{kind}_tokens_total", worker="decode-0")
        return found

    assert (tokens("predicted"), tokens("actual")) == (64, cached)
    assert tokens("error") == 64 - cached


async def test_without_an_index_nothing_is_told(start_world: Any, seen: Seen) -> None:
    world = await start_world(index="off")
    await world.add_worker("decode-0", says([5]), kv_identity=IDENTITY)
    for _ in range(2):
        assert (await ask(world)).status_code == 200
    assert seen == [{}, {}]
