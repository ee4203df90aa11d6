"""What does a prefill/decode split cost in time to first token, and how much of the transfer is
hidden?

An aggregated cluster and one P/D cluster per link run side by side on the same cores; each prompt
is new to all of them and is sent to one after the other, in turn. A ratio is the median over rounds
of TTFT(P/D) / TTFT(aggregated) of the same prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import finish, print_table
from bench.workload import DTYPES
from triptych.config import load_config
from triptych.hub import pull_model
from triptych.testing.cluster import Cluster, running_cluster

AGGREGATED = "aggregated"


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt through one cluster."""

    ttft_s: float  # at the client
    timings: dict[str, Any]  # what the home measured


async def first_token(cluster: Cluster, prompt: list[int]) -> Sample:
    """Streams one token; the time is from sending the request to receiving its first event."""
    body = {
        "model": "bench",
        "prompt": prompt,
        "max_tokens": 1,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.perf_counter()
    ttft, last = 0.0, ""
    headers = {"X-Triptych-Timings": "1"}
    async with cluster.http.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
        assert reply.status_code == 200, (await reply.aread()).decode()
        async for line in reply.aiter_lines():
            ttft = ttft or time.perf_counter() - began
            if line.startswith("data: {"):
                last = line[6:]
    return Sample(ttft, json.loads(last)["triptych"])


def memcpy_gb_s(megabytes: int = 64, rounds: int = 9) -> float:
    """What one core copies between two buffers that no cache holds; the median."""
    source = np.random.default_rng(0).integers(0, 255, megabytes << 20, dtype=np.uint8)
    target = np.empty_like(source)
    speeds = []
    for _ in range(rounds):
        began = time.perf_counter()
        np.copyto(target, source)
        speeds.append(source.nbytes / (time.perf_counter() - began) / 1e9)
    return statistics.median(speeds)


async def measure(
    links: Sequence[str], lengths: Sequence[int], rounds: int, base: Sequence[str]
) -> list[dict[str, Any]]:
    draw = random.Random(0)
    async with contextlib.AsyncExitStack() as stack:
        clusters = {}
        for name in (AGGREGATED, *links):
            overrides = (
                ["pools=[{name: decode, role: decode}]"]
                if name == AGGREGATED
                else [f"transport.links=[{name}]", f"transport.require={name}"]
            )
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="triptych-"))
            config = load_config(None, [*base, *overrides])
            clusters[name] = await stack.enter_async_context(running_cluster(config, Path(folder)))
        for cluster in clusters.values():  # first use opens links and warms the allocator
            await first_token(cluster, random_prompt(draw, 600))
        rows = []
        for length in lengths:
            samples: dict[str, list[Sample]] = {name: [] for name in clusters}
            for turn in range(rounds):
                prompt = random_prompt(draw, length)
                order = list(clusters) if turn % 2 else list(reversed(clusters))
                for name in order:
                    samples[name].append(await first_token(clusters[name], prompt))
            memcpy = memcpy_gb_s()
            rows += [
                row(length, link, samples[link], samples[AGGREGATED], memcpy) for link in links
            ]
        return rows


def random_prompt(draw: random.Random, length: int) -> list[int]:
    """Token ids that no cluster has seen: nothing is cached anywhere."""
    return [draw.randrange(100, 40_000) for _ in range(length)]


def row(
    tokens: int, link: str, split: Sequence[Sample], whole: Sequence[Sample], memcpy: float
) -> dict[str, Any]:
    def median(key: str) -> float:
        return statistics.median(float(sample.timings[key]) for sample in split)

    fetch_s = median("fetch_ms") / 1e3
    assert all(sample.timings["kv_path"].split(":")[0] == link for sample in split), "another path"
    return {
        "tokens": tokens,
        "link": link,
        "path": split[-1].timings["kv_path"],
        "ttft_ratio": statistics.median(
            a.ttft_s / b.ttft_s for a, b in zip(split, whole, strict=True)
        ),
        "ttft_ms": statistics.median(sample.ttft_s for sample in split) * 1e3,
        "aggregated_ttft_ms": statistics.median(sample.ttft_s for sample in whole) * 1e3,
        "kv_mb": median("kv_bytes") / 1e6,
        "gb_s": median("kv_bytes") / 1e9 / fetch_s,
        "memcpy_gb_s": memcpy,
        "hidden": median("hidden_ms") / median("fetch_ms"),
        "after_prefill_ms": median("transfer_ms"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--links", nargs="*", default=["shm", "tcp", "nixl"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    base = [
        f"model={options.model}",
        "served_model_name=bench",
        f"dtype={options.dtype}",
        "router.port=0",
        "router.placement=least-loaded",  # a prompt is handed over whenever it can be
        *options.set,
    ]
    rows = asyncio.run(measure(options.links, options.tokens, options.rounds, base))
    columns = list(rows[0])
    print_table("prefill/decode hand-off", columns, [[row[key] for key in columns] for row in rows])
    finish({"rows": rows}, options.save)


if __name__ == "__main__":
    main()
