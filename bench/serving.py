"""How much of the bare engine's speed reaches clients that stream through the router?

A cluster and the bare engine (the decode worker's step without a network, in a process of its own)
run side by side on the same cores, one after the other in each round, with the same new prompts and
the same number of tokens. CPU time is told by process: what a decode worker spends beyond the bare
engine's time, the router, and this client.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.report import finish, print_table, quantile
from bench.sse_client import Heard, stream_all
from triptych.config import ClusterConfig, dump_config, load_config
from triptych.hub import pull_model
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.cluster import Cluster, running_cluster

_AGGREGATED = "pools=[{name: decode, role: decode}]"


@dataclass(frozen=True, slots=True)
class Side:
    """One batch on one side of the comparison."""

    tokens_s: float
    cpu_us: dict[str, float]  # per token, by process
    heard: list[Heard]


class BareEngine:
    """The child process that runs batches without a network."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, config_file: Path) -> AsyncIterator[BareEngine]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.bare_engine", str(config_file),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        engine = cls(process)
        try:
            await engine._answer()
            yield engine
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def run(self, prompts: list[list[int]], tokens: int) -> Side:
        assert self._process.stdin is not None
        line = json.dumps({"prompts": prompts, "tokens": tokens}) + "\n"
        self._process.stdin.write(line.encode())
        found = await self._answer()
        total = len(prompts) * tokens
        return Side(total / found["seconds"], {"engine": found["cpu_s"] / total * 1e6}, [])

    async def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("the bare engine died")
        found: dict[str, float] = json.loads(line)
        return found


async def serve(cluster: Cluster, prompts: list[list[int]], tokens: int) -> Side:
    names = ["router", *(str(worker["worker_id"]) for worker in await cluster.workers())]
    processes = {name: psutil.Process(cluster.pid(name)) for name in names}
    processes["client"] = psutil.Process()
    before = {name: _cpu_s(process) for name, process in processes.items()}
    heard = await stream_all(cluster.url, [_body(prompt, tokens) for prompt in prompts])
    total = len(prompts) * tokens
    assert all(stream.completion_tokens == tokens for stream in heard), "a stream ended early"
    seconds = max(h.ended_at for h in heard) - min(h.asked_at for h in heard)
    cpu_us = {name: (_cpu_s(p) - before[name]) / total * 1e6 for name, p in processes.items()}
    return Side(total / seconds, cpu_us, heard)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _body(prompt: list[int], tokens: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def measure(config: ClusterConfig, options: argparse.Namespace) -> list[dict[str, Any]]:
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        config_file = Path(folder) / "config.yaml"
        config_file.write_text(dump_config(config))
        async with (
            running_cluster(config, Path(folder) / "run") as cluster,
            BareEngine.started(config_file) as bare,
        ):
            rows = []
            for streams in options.streams:
                sides: list[tuple[Side, Side]] = []
                for turn in range(options.rounds + 1):
                    prompts = [random_prompt(draw, options) for _ in range(streams)]
                    if turn % 2:
                        engine = await bare.run(prompts, options.tokens)
                        served = await serve(cluster, prompts, options.tokens)
                    else:
                        served = await serve(cluster, prompts, options.tokens)
                        engine = await bare.run(prompts, options.tokens)
                    sides.append((served, engine))
                rows.append(row(streams, sides[1:]))  # the first warms up
            return rows


def random_prompt(draw: random.Random, options: argparse.Namespace) -> list[int]:
    """Token ids that nobody has seen: nothing is cached."""
    return [draw.randrange(100, options.vocab) for _ in range(options.prompt_tokens)]


def row(streams: int, sides: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    median = statistics.median
    served, bare = [side for side, _ in sides], [side for _, side in sides]
    cpu = {name: median(side.cpu_us[name] for side in served) for name in served[0].cpu_us}
    engine = median(side.cpu_us["engine"] for side in bare)
    gaps = [b - a for s in served for h in s.heard for a, b in itertools.pairwise(h.reads)]
    first = [h.reads[0] - h.asked_at for s in served for h in s.heard]
    overhead = sum(cpu.values()) - engine
    return {
        "streams": streams,
        "tokens_s": median(side.tokens_s for side in served),
        "bare_tokens_s": median(side.tokens_s for side in bare),
        "ratio": median(a.tokens_s / b.tokens_s for a, b in sides),
        "overhead_us": overhead,
        "home_us": cpu["decode-0"] + cpu.get("prefill-0", 0.0) - engine,
        "router_us": cpu["router"],
        "client_us": cpu["client"],
        "engine_us": engine,
        "ttft_p50_ms": quantile(first, 50) * 1e3,
        "ttft_p99_ms": quantile(first, 99) * 1e3,
        "itl_p50_ms": quantile(gaps, 50) * 1e3,
        "itl_p99_ms": quantile(gaps, 99) * 1e3,
        "events_per_read": sum(h.num_events for s in served for h in s.heard)
        / sum(len(h.reads) for s in served for h in s.heard),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--tokens", type=int, default=128, help="of each stream")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2-135m", help="`tiny`: one random layer")
    parser.add_argument("--pools", choices=["aggregated", "pd"], default="aggregated")
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    options.vocab = 250 if options.model == "tiny" else 40_000
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        model = options.model
        if model == "tiny":
            model = str(tiny_llama(Path(folder) / "tiny", num_layers=1))
        elif model == "smollm2-135m":
            pull_model(model)
        pools = [_AGGREGATED] if options.pools == "aggregated" else []
        overrides = [
            f"model={model}",
            "served_model_name=bench",
            "router.port=0",
            "speculation.mode=off",
            *pools,
        ]
        config = load_config(None, [*overrides, *options.set])
        rows = uvloop.run(measure(config, options))
    names = list(rows[0])
    print_table(f"serving, {options.pools}", ["", *map(str, options.streams)], [
        [name, *(found[name] for found in rows)] for name in names
    ])  # fmt: skip
    finish({"pools": options.pools, "tokens": options.tokens, "rows": rows}, options.save)


if __name__ == "__main__":
    main()
