"""Kill -9 of FFN workers under load: do all streams end with the tokens of an undisturbed run?"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.one_answer import differing
from triptych.config import load_config
from triptych.testing.cluster import Cluster, running_cluster

_WORKERS = 3
_TOKENS = 96  # of a request
_TEXTS = (
    "Tell me about the tides.", "How is paper made?", "Why do cats purr?", "Write about Kyoto.",
    "What is a compiler?", "Explain chess openings.", "Describe a storm at sea.", "Who was Bach?",
)  # fmt: skip

Key = tuple[int, int]  # stream, number of the request on it


@dataclass(slots=True)
class Told:
    """What the streams of one run said."""

    tokens: dict[Key, list[int]] = field(default_factory=dict)
    longest_gap_s: float = 0.0  # between two tokens of a stream


@dataclass(frozen=True, slots=True)
class KillResult:
    streams: int
    requests: int
    tokens: int
    kills: int
    mismatches: int  # tokens that differ or are missing
    longest_gap_s: float
    calm_gap_s: float  # of the undisturbed run


async def run_kills(
    model: Path, *, streams: int = 8, seconds: float = 60.0, every_s: float = 5.0
) -> KillResult:
    pools = [
        {"name": "decode", "role": "decode", "threads": 1},
        {"name": "ffn", "role": "ffn", "replicas": _WORKERS, "threads": 1},
    ]
    settings = [
        f"model={model}", "served_model_name=bench", "router.port=0", "speculation.mode=off",
        f"pools={json.dumps(pools)}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(load_config(None, settings), Path(folder)) as cluster:
            stop = asyncio.Event()
            killing = asyncio.create_task(kill_in_turn(cluster, seconds, every_s, stop))
            shaken = await tell_all(cluster, streams, stop)
            kills = await killing
            calm = await tell_again(cluster, shaken)
    return KillResult(
        streams=streams,
        requests=len(shaken.tokens),
        tokens=sum(map(len, calm.tokens.values())),
        kills=kills,
        mismatches=sum(differing([calm.tokens[key]], [shaken.tokens[key]]) for key in calm.tokens),
        longest_gap_s=shaken.longest_gap_s,
        calm_gap_s=calm.longest_gap_s,
    )


async def kill_in_turn(
    cluster: Cluster, seconds: float, every_s: float, stop: asyncio.Event
) -> int:
    """One FFN worker after the other, whoever is alive; sets `stop` when the time is over."""
    kills, until = 0, time.monotonic() + seconds
    for turn in itertools.count():
        await asyncio.sleep(every_s)
        if time.monotonic() >= until:
            stop.set()
            return kills
        for step in range(_WORKERS):
            pid = cluster.launcher.pid(f"ffn-{(turn + step) % _WORKERS}")
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                kills += 1
                break
    raise AssertionError("the count never ends")


async def tell_all(cluster: Cluster, streams: int, stop: asyncio.Event) -> Told:
    """Requests one after the other on every stream until `stop`; those begun are heard out."""
    told = Told()

    async def stream(number: int) -> None:
        for request in itertools.count():
            await tell_one(cluster, (number, request), told)
            if stop.is_set():
                return

    await asyncio.gather(*map(stream, range(streams)))
    return told


async def tell_again(cluster: Cluster, before: Told) -> Told:
    """The same requests, as many at a time, with nobody dying."""
    told, by_stream = Told(), dict[int, list[Key]]()
    for key in sorted(before.tokens):
        by_stream.setdefault(key[0], []).append(key)

    async def stream(keys: list[Key]) -> None:
        for key in keys:
            await tell_one(cluster, key, told)

    await asyncio.gather(*map(stream, by_stream.values()))
    return told


async def tell_one(cluster: Cluster, key: Key, told: Told) -> None:
    """Every other stream is sampled, with a seed of its own."""
    stream, request = key
    body = {
        "model": "bench",
        "prompt": f"{_TEXTS[stream % len(_TEXTS)]} ({request})",
        "max_tokens": _TOKENS,
        "temperature": 0.8 * (stream % 2),
        "seed": 1000 * stream + request,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    tokens, last = list[int](), None
    async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200, f"{reply.status_code}: {await reply.aread()!r}"
        async for line in reply.aiter_lines():
            found = token_ids(line)
            if not found:
                continue
            now = time.perf_counter()
            if last is not None:
                told.longest_gap_s = max(told.longest_gap_s, now - last)
            last = now
            tokens += found
    told.tokens[key] = tokens


def token_ids(line: str) -> list[int]:
    """Those of one line of an event stream. Raises RuntimeError when it tells of an error."""
    data = line.removeprefix("data: ")
    if data == line or data == "[DONE]":
        return []
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise RuntimeError(f"a stream broke: {event['error']}")
    return [token for choice in event["choices"] for token in choice.get("token_ids") or []]
