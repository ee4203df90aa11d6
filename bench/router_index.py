"""What does it cost the router to know who holds which prefix, and how well does it know?

    python -m bench.router_index                            (a minute)

A million blocks, each held by one to three of 64 workers; messages as workers send them while they
serve (256 changes) and in snapshots (16,384). Lookups are of prompts of 6,250 blocks: 100,000
tokens in blocks of 16. Losses: eight workers' pools churn, one message in twenty never arrives, one
worker starts anew. The error is that of predictions for all prompts on all workers, looked at all
the time; events that are on their way are part of it. The stream of events is that of the product,
over a socket; only the losses are made up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from bench.report import finish, print_table
from router.index.audit import relative_error
from router.index.feed import KvFeed
from router.index.hit import PrefixHit
from router.index.holdings import Holding
from router.index.kv_index import KvIndex
from router.index.metrics import IndexMetrics
from router.index.prefixes import HashedPrompt, Identity, Prefixes
from router.index.table import Keys
from router.placement import POLICIES, PlacementRequest
from transport.channel import start_server
from transport.kv_feed import publish_cache
from transport.pace import Pace, StepCost
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from transport.registry import WorkerView
from triptych.kv.hashing import extend_hashes
from triptych.kv.pool import BlockPool
from triptych.testing.kv_workers import compute, hashes_of, worker_view
from triptych.wire import to_status

BLOCKS, WORKERS = 1_000_000, 64
PROMPT_BLOCKS, BLOCK_TOKENS = 6_250, 16
MESSAGE, PART = 256, 16_384


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=BLOCKS)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--save", type=Path, help="keep the result in this file")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"blocks": args.blocks, "workers": args.workers}
    index, keys = _fill(args.blocks, args.workers, result)
    _time_events(index, result)
    _time_lookups(index, keys, result)
    _time_decisions(index, keys, args.workers, result)
    _time_hashing(result)
    result |= asyncio.run(_lose())
    print_table("Index of prefixes", ["", ""], [[name, value] for name, value in result.items()])
    finish(result, args.save)


def _fill(blocks: int, workers: int, result: dict[str, Any]) -> tuple[KvIndex, Keys]:
    """The first PROMPT_BLOCKS keys are a prompt that worker 0 holds, half of it worker 1."""
    index, draw = KvIndex(), np.random.default_rng(0)
    keys = draw.integers(0, 2**64, blocks, dtype=np.uint64)
    copies = draw.integers(1, 4, blocks)
    first = draw.integers(0, workers, blocks)
    first[:PROMPT_BLOCKS], copies[:PROMPT_BLOCKS] = 0, 1
    holders: list[Holding] = [index.holdings.open() for _ in range(workers)]
    index.holdings.reserve(2 * blocks)  # what workers announce when they join
    told, longest_s = 0, 0.0
    began = time.perf_counter()
    for number, holding in enumerate(holders):
        held = keys[(number - first) % workers < copies]
        if number == 1:
            held = np.concatenate([held, keys[: PROMPT_BLOCKS // 2]])
        held = np.unique(held)
        for start in range(0, len(held), PART):
            part_began = time.perf_counter()
            holding.add(held[start : start + PART])
            longest_s = max(longest_s, time.perf_counter() - part_began)
        told += len(held)
        index.replace(f"worker-{number}", holding)
    result["snapshot_events_per_s"] = round(told / (time.perf_counter() - began))
    result["longest_part_ms"] = round(longest_s * 1e3, 2)  # for so long streams stand still
    result["holds"] = told
    result["bytes_per_block"] = round(index.holdings.num_bytes / index.holdings.num_keys, 1)
    return index, keys


def _time_events(index: KvIndex, result: dict[str, Any]) -> None:
    """Blocks come to a worker and go again, so that the index stays as large as it is."""
    draw = np.random.default_rng(1)
    messages = [np.unique(draw.integers(0, 2**64, MESSAGE, dtype=np.uint64)) for _ in range(400)]
    began = time.perf_counter()
    for number, message in enumerate(messages):
        index.store(f"worker-{number % 8}", message)
    for number, message in enumerate(messages):
        index.remove(f"worker-{number % 8}", message)
    events = 2 * sum(len(message) for message in messages)
    result["events_per_s"] = round(events / (time.perf_counter() - began))


def _time_lookups(index: KvIndex, keys: Keys, result: dict[str, Any]) -> None:
    whole = keys[:PROMPT_BLOCKS]
    unknown = np.random.default_rng(2).integers(0, 2**64, PROMPT_BLOCKS, dtype=np.uint64)
    shared = np.concatenate([whole[:500], unknown[500:]])  # 8,000 tokens of a system prompt
    assert index.look_up(whole).told == {"worker-0": 6250, "worker-1": 3125}
    for name, prompt in {"whole": whole, "shared_8k": shared, "unknown": unknown}.items():
        times = []
        for _ in range(500):
            began = time.perf_counter()
            index.look_up(prompt)
            times.append(time.perf_counter() - began)
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        result[f"lookup_{name}_p50_ms"] = round(float(p50), 3)
        result[f"lookup_{name}_p99_ms"] = round(float(p99), 3)


def _time_decisions(index: KvIndex, keys: Keys, workers: int, result: dict[str, Any]) -> None:
    """From a prompt's keys to its home: who holds how much of it, and what each would cost."""
    prefixes = Prefixes(index)
    views = [_view(f"worker-{number}") for number in range(workers)]
    unknown = np.random.default_rng(6).integers(0, 2**64, PROMPT_BLOCKS, dtype=np.uint64)
    draw, times = random.Random(6), []
    for turn in range(500):
        known = draw.randrange(PROMPT_BLOCKS)
        prompt_keys = np.concatenate([keys[:known], unknown[known:]])
        num_tokens = PROMPT_BLOCKS * BLOCK_TOKENS
        prompt = HashedPrompt(num_tokens, {Identity.of(views[0]): prompt_keys}, 0.0)
        began = time.perf_counter()
        hits = prefixes.predict(prompt).hits
        request = PlacementRequest("bench", turn, cached=hits, prompt_tokens=num_tokens)
        placement = POLICIES["predicted"](request, views)
        times.append(time.perf_counter() - began)
        assert placement.decode in views
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    result["decision_p50_ms"] = round(float(p50), 3)
    result["decision_p99_ms"] = round(float(p99), 3)


def _view(worker_id: str) -> WorkerView:
    return replace(
        worker_view(worker_id, num_blocks=20_000),
        model="bench",
        max_model_len=131_072,
        block_tokens=BLOCK_TOKENS,
        pace=Pace(
            prefill=StepCost(base_s=0.01, row_s=1e-5, pair_s=0.0),
            decode=StepCost(base_s=0.01, row_s=1e-5, pair_s=0.0),
            chunk_tokens=512,
            tokens_per_step=1.0,
        ),
    )


def _time_hashing(result: dict[str, Any]) -> None:
    draw = random.Random(3)
    tokens = [draw.randrange(150_000) for _ in range(PROMPT_BLOCKS * BLOCK_TOKENS)]
    for block_tokens in (16, 32):
        times = []
        for _ in range(20):
            hashes: list[bytes] = []
            began = time.perf_counter()
            extend_hashes(hashes, tokens, block_tokens, bytes(16))
            times.append(time.perf_counter() - began)
        result[f"hash_100k_tokens_by_{block_tokens}_ms"] = round(sorted(times)[10] * 1e3, 2)


class _LossyFeed(KvFeed):
    """Loses one message in twenty."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.num_lost = 0
        self._draw = random.Random(4)

    async def Publish(self, messages: AsyncIterator[pb.KvEvents], context: Any) -> None:
        await super().Publish(self._some(messages), context)

    async def _some(self, messages: AsyncIterator[pb.KvEvents]) -> AsyncIterator[pb.KvEvents]:
        yield await anext(aiter(messages))
        async for message in messages:
            if self._draw.random() < 0.05:
                self.num_lost += 1
            else:
                yield message


async def _lose(num_workers: int = 8, seconds: float = 15.0) -> dict[str, Any]:
    draw = random.Random(5)
    prompts = [hashes_of([prompt] * 4 * (1 + prompt % 50)) for prompt in range(400)]
    pools = {f"worker-{number}": BlockPool(2000) for number in range(num_workers)}
    index = KvIndex()
    feed = _LossyFeed(index, IndexMetrics(CollectorRegistry()))

    def error() -> float:
        pairs = []
        for prompt in prompts[::8]:
            hits = index.hits(prompt)
            for name, pool in pools.items():
                pairs.append((hits.get(name, PrefixHit(0)).blocks, pool.count_cached(prompt)))
        return relative_error(pairs)

    def register(server: Any) -> None:
        add: Callable[..., None] = worker_pb2_grpc.add_KvFeedServicer_to_server
        add(feed, server)

    with tempfile.TemporaryDirectory(prefix="tri-") as folder:
        server = await start_server(f"unix:{folder}/feed.sock", [register], [], to_status)

        def publish(name: str, epoch: int) -> asyncio.Task[Any]:
            return asyncio.create_task(publish_cache(server.address, name, epoch, pools[name]))

        tasks = {name: publish(name, 1) for name in pools}
        errors = _Errors()
        began, restarted = time.monotonic(), False
        while (passed := time.monotonic() - began) < seconds:
            for pool in pools.values():
                compute(pool, draw.choice(prompts))
            await asyncio.sleep(0.01)
            if passed > seconds / 2 and not restarted:
                restarted = True
                tasks["worker-0"].cancel()
                pools["worker-0"] = BlockPool(2000)
                tasks["worker-0"] = publish("worker-0", 2)
            errors.note(error())
        for task in tasks.values():
            task.cancel()
        await asyncio.wait(tasks.values())
        await server.stop(0.0)
    return {
        "lost_messages": feed.num_lost,
        "mean_error": round(float(np.mean(errors.seen)), 4),
        "worst_error": round(max(errors.seen), 4),
        "longest_over_1_percent_s": round(errors.longest_s, 2),
    }


class _Errors:
    """How large, and for how long."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.longest_s = 0.0  # over one per cent
        self._since: float | None = None

    def note(self, error: float) -> None:
        now = time.monotonic()
        self.seen.append(error)
        if self._since is not None:
            self.longest_s = max(self.longest_s, now - self._since)
        if error < 0.01:
            self._since = None
        elif self._since is None:
            self._since = now


if __name__ == "__main__":
    main()
