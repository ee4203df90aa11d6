"""What does it cost the router to turn a request away by its head, and what with its body read?

    python -m bench.refusals [--seconds 5] [--tokens 240 4000]

A live router in front of one home; a tenant whose rate is used up asks in a closed loop over a few
connections. A request that declares its length is turned away by its head; the same one in chunks
is read and checked first, and then turned away for the same reason. CPU time is the
router process's, all threads and the kernel's part included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.open_loop import Client, Planned
from bench.report import finish, print_table
from triptych.config import ClusterConfig, load_config
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.cluster import Cluster, running_cluster

CONNECTIONS = 4
TENANT = {"name": "late", "keys": ["late"], "requests_per_s": 1e-4, "request_burst": 1}


def planned(tokens: int, *, chunked: bool) -> Planned:
    """A prompt of token ids: a text would cost more to read."""
    content = json.dumps({"prompt": [100] * tokens, "max_tokens": 1}).encode()
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer late\r\n{length}\r\n\r\n"
    )
    if chunked:
        content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
    return Planned(0.0, "late", (), 1, head.encode() + content)


async def cost_of(cluster: Cluster, plan: Planned, seconds: float) -> dict[str, float]:
    """CPU milliseconds of a refusal, refusals per core-second, and how long one takes."""
    router = psutil.Process(cluster.pid("router"))
    took: list[float] = []
    with contextlib.closing(Client(cluster.url)) as client:
        until = time.perf_counter() + seconds

        async def ask() -> None:
            while time.perf_counter() < until:
                [asked] = await client.play([plan], "once", 0.0, 10.0)
                [attempt] = asked.attempts
                assert attempt.status == 429, f"{attempt.status} {attempt.code}"
                took.append(attempt.ended_at - attempt.sent_at)

        before = _cpu_s(router)
        await asyncio.gather(*(ask() for _ in range(CONNECTIONS)))
        cpu_s = _cpu_s(router) - before
    return {
        "refusals": len(took),
        "cpu_ms": 1e3 * cpu_s / len(took),
        "per_core_s": len(took) / cpu_s,
        "p50_ms": 1e3 * sorted(took)[len(took) // 2],
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def measure(config: ClusterConfig, options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        async with running_cluster(config, Path(folder)) as cluster:
            with contextlib.closing(Client(cluster.url)) as client:
                await client.play([planned(1, chunked=False)], "once", 0.0, 10.0)  # its only one
            for tokens in options.tokens:
                by_head, read = [
                    await cost_of(cluster, planned(tokens, chunked=chunked), options.seconds)
                    for chunked in (False, True)
                ]
                gain = read["cpu_ms"] / by_head["cpu_ms"]
                rows.append({"tokens": tokens, "by_head": by_head, "read": read, "times": gain})
    print_table(
        "CPU of the router for a refusal",
        ["tokens", "by head, ms", "per core-second", "body read, ms", "per core-second", "times"],
        [
            [row["tokens"], row["by_head"]["cpu_ms"], row["by_head"]["per_core_s"],
             row["read"]["cpu_ms"], row["read"]["per_core_s"], row["times"]]
            for row in rows
        ],
    )  # fmt: skip
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.refusals", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of refusal")
    parser.add_argument("--tokens", type=int, nargs="+", default=[240, 4000], help="of prompts")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        model = tiny_llama(Path(folder) / "tiny")
        settings = [
            f"model={model}",
            "router.port=0",
            "kv.memory=64MiB",
            f"pools={json.dumps([{'name': 'decode', 'role': 'decode', 'threads': 1}])}",
            f"router.tenants={json.dumps([TENANT])}",
        ]
        result = uvloop.run(measure(load_config(None, settings), options))
    finish(result, options.save)


if __name__ == "__main__":
    main()
