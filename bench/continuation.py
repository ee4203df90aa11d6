"""Kill -9 of decode and prefill workers under mixed streams: how long does a stream pause, and does
it end with the tokens of an undisturbed run?

    python -m bench.continuation --model smollm2-135m --streams 32
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from triptych.config import load_config
from triptych.testing.cluster import Cluster, eventually, running_cluster

_VICTIMS = ("decode-0", "prefill-0", "decode-1")  # in turn, each when the one before is back
_TEXTS = ("Tell me about the tides.", "How is paper made?", "Why do cats purr?", "Who was Bach?")
_KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.0, "n": 2},
    {"temperature": 0.8, "logprobs": 2, "frequency_penalty": 0.5},
)


@dataclass(slots=True)
class Run:
    """What the streams said."""

    tokens: dict[int, list[list[int]]] = field(default_factory=dict)  # by stream and choice
    gaps_s: list[float] = field(default_factory=list)  # each stream's longest
    broken: int = 0  # streams without a proper end


@dataclass(frozen=True, slots=True)
class Result:
    streams: int
    kills: int
    tokens: int
    mismatches: int  # streams with other tokens than in the calm run
    broken: int
    gap_p50_s: float  # of the streams' longest pauses
    gap_p99_s: float
    calm_gap_s: float


async def run_bench(model: str, streams: int, max_tokens: int) -> Result:
    pools = [
        {"name": role, "role": role, "replicas": count, "threads": 1}
        for role, count in (("decode", 2), ("prefill", 1))
    ]
    settings = [f"model={model}", "router.port=0", f"pools={json.dumps(pools)}"]
    bodies = [body_of(number, max_tokens) for number in range(streams)]
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(load_config(None, settings), Path(folder)) as cluster:
            calm = await run_all(cluster, bodies)
            began = asyncio.Event()
            killing = asyncio.create_task(kill_in_turn(cluster, began))
            shaken = await run_all(cluster, bodies, began)
            killing.cancel()
            kills = await killing
    gaps = sorted(shaken.gaps_s)
    return Result(
        streams=streams,
        kills=kills,
        tokens=sum(len(ids) for choices in shaken.tokens.values() for ids in choices),
        mismatches=sum(shaken.tokens.get(n) != calm.tokens[n] for n in range(streams)),
        broken=shaken.broken,
        gap_p50_s=round(gaps[len(gaps) // 2], 3),
        gap_p99_s=round(gaps[int(0.99 * (len(gaps) - 1) + 0.5)], 3),
        calm_gap_s=round(sorted(calm.gaps_s)[-1], 3),
    )


def body_of(number: int, max_tokens: int) -> dict[str, Any]:
    prompt = f"{number}. {_TEXTS[number % len(_TEXTS)]} " * (1 + number % 7)
    fixed = {"stream": True, "ignore_eos": True, "return_token_ids": True, "seed": number}
    return {**fixed, "prompt": prompt, "max_tokens": max_tokens, **_KINDS[number % len(_KINDS)]}


async def run_all(
    cluster: Cluster, bodies: Sequence[dict[str, Any]], began: asyncio.Event | None = None
) -> Run:
    run = Run()
    await asyncio.gather(*(follow(cluster, n, body, run, began) for n, body in enumerate(bodies)))
    return run


async def follow(
    cluster: Cluster, number: int, body: dict[str, Any], run: Run, began: asyncio.Event | None
) -> None:
    """One stream: its tokens and its longest pause after the first of them."""
    choices: list[list[int]] = [[] for _ in range(body.get("n", 1))]
    seen_at, gap, line = 0.0, 0.0, ""
    async with cluster.http.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now = time.monotonic()
            gap, seen_at = max(gap, now - seen_at if seen_at else 0.0), now
            for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                choices[choice["index"]] += choice.get("token_ids") or ()
            if began is not None:
                began.set()
            if line.startswith('data: {"error"'):
                run.broken += 1
    run.tokens[number] = choices
    run.gaps_s.append(gap)


async def kill_in_turn(cluster: Cluster, began: asyncio.Event) -> int:
    """Until cancelled, or all victims have died and come back; how many died."""
    kills = 0
    try:
        await began.wait()
        for name in _VICTIMS:
            old = await cluster.worker(name)
            assert old is not None, f"{name} is not attached"
            os.kill(cluster.pid(name), signal.SIGKILL)
            kills += 1
            await eventually(partial(_is_back, cluster, name, old["epoch"]), timeout_s=120)
    except asyncio.CancelledError:
        pass
    return kills


async def _is_back(cluster: Cluster, name: str, epoch: int) -> bool:
    worker = await cluster.worker(name)
    return worker is not None and worker["epoch"] != epoch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.continuation", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=300)
    options = parser.parse_args()
    result = asyncio.run(run_bench(options.model, options.streams, options.max_tokens))
    for name, value in asdict(result).items():
        print(f"{name:>16}  {value}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
