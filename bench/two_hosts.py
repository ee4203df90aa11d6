"""Is the hand-off of KV between two hosts hidden behind prefill, as far as the link allows?

Prefill and decode worker stand in network namespaces; a token bucket limits the link. A prompt is
computed in chunks; chunk i, of B_i bytes, may travel when it is computed, at C_i, and when the one
before it has arrived:

    arrived_i = max(C_i, arrived_{i-1}) + B_i / rate          TTFT = arrived_n

C_i is the time to first token of a prompt that ends with chunk i on an unlimited link, in the same
run. Nothing is fitted. `rate` is what TCP gets of the
link: 1448 of 1514 bytes of a full frame. Beside it stands what it would be without overlap:
C_n + B / rate.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.handoff import Sample, first_token, random_prompt
from bench.report import finish, print_table
from bench.workload import DTYPES
from triptych.config import ClusterConfig, load_config
from triptych.hub import pull_model
from triptych.testing.cluster import eventually
from triptych.testing.distant_cluster import DistantCluster, distant_cluster
from triptych.testing.hosts import Network

_PAYLOAD = 1448 / 1514
_CUT_S = 10.0
_UNLIMITED = 0.0


def predicted_s(computed_s: Sequence[float], chunk_bytes: Sequence[float], bytes_s: float) -> float:
    """When the last chunk has arrived; `computed_s`: when each is computed."""
    arrived = 0.0
    for ready, size in zip(computed_s, chunk_bytes, strict=True):
        arrived = max(ready, arrived) + size / bytes_s
    return arrived


async def measure(
    cluster: DistantCluster, chunk: int, chunks: int, rates: Sequence[float], rounds: int
) -> list[dict[str, Any]]:
    """TTFT of the prompts that end with each chunk, unlimited; of the longest, at each rate."""
    draw = random.Random(0)
    lengths = [chunk * number for number in range(1, chunks + 1)]
    seen: dict[tuple[float, int], list[Sample]] = {}
    await first_token(cluster, random_prompt(draw, chunk))  # opens links, warms the allocator
    for _ in range(rounds):
        for rate, length in [
            *((_UNLIMITED, length) for length in lengths),
            *((rate, lengths[-1]) for rate in rates),
        ]:
            await limit(cluster, rate)
            sample = await first_token(cluster, random_prompt(draw, length))
            assert sample.timings["kv_path"].startswith("tcp"), sample.timings
            seen.setdefault((rate, length), []).append(sample)
    computed = [_median(seen[_UNLIMITED, length]) for length in lengths]
    total = statistics.median(s.timings["kv_bytes"] for s in seen[_UNLIMITED, lengths[-1]])
    return [
        row(rate, computed, total, _median(seen[rate, lengths[-1]]), seen[rate, lengths[-1]])
        for rate in rates
    ]


def row(
    rate: float, computed: Sequence[float], total: float, ttft_s: float, samples: Sequence[Sample]
) -> dict[str, Any]:
    bytes_s = rate * 1e6 / 8 * _PAYLOAD
    predicted = predicted_s(computed, [total / len(computed)] * len(computed), bytes_s)
    apart = computed[-1] + total / bytes_s
    hidden = [s.timings["hidden_ms"] / s.timings["fetch_ms"] for s in samples]
    return {
        "link_mbit": rate,
        "kv_mb": total / 1e6,
        "compute_s": computed[-1],
        "wire_s": total / bytes_s,
        "ttft_s": ttft_s,
        "predicted_s": predicted,
        "measured/predicted": ttft_s / predicted,
        "without_overlap_s": apart,
        "overlap_gain": apart / ttft_s,
        "hidden": statistics.median(hidden),
    }


async def limit(cluster: DistantCluster, rate: float) -> None:
    """Of the prefill host's link, in Mbit/s; _UNLIMITED takes the limit away."""
    host = cluster.hosts["prefill-0"]
    if rate == _UNLIMITED:
        await host.unlimit()
    else:
        await host.limit(rate_mbit=rate)


async def cut_in_transfer(cluster: DistantCluster, tokens: int, rate: float) -> dict[str, Any]:
    """The link goes down for `_CUT_S` while KV travels; the answer next to an undisturbed one."""
    draw = random.Random(1)
    prompt = random_prompt(draw, tokens)
    body = {"model": "bench", "prompt": prompt, "max_tokens": 16, "temperature": 0}
    await limit(cluster, rate)
    calm = await answer(cluster, {**body, "cache_salt": "calm"})
    before = await arrived_bytes(cluster)
    asked = asyncio.create_task(answer(cluster, {**body, "cache_salt": "cut"}))

    async def under_way() -> bool:
        return await arrived_bytes(cluster) > before

    await eventually(under_way, timeout_s=120)
    assert not asked.done(), "the first chunk is not the last one"
    host = cluster.hosts["prefill-0"]
    await host.cut()
    await asyncio.sleep(_CUT_S)
    await host.mend()
    disturbed = await asked
    return {
        "cut_s": _CUT_S,
        "calm_s": calm[2],
        "cut_answer_s": disturbed[2],
        "same": calm[0] == disturbed[0],
        "fallbacks": disturbed[1]["fallbacks"],
    }


async def arrived_bytes(cluster: DistantCluster) -> float:
    """KV that the home has fetched and committed so far."""
    page = await cluster.metrics("decode-0")
    return page["triptych_kv_transfer_bytes_total", frozenset({("link", "tcp")})]


async def answer(
    cluster: DistantCluster, body: dict[str, Any]
) -> tuple[str, dict[str, Any], float]:
    """Text, timings and seconds."""
    began = time.perf_counter()
    headers = {"X-Triptych-Timings": "1"}
    reply = await cluster.http.post("/v1/completions", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    return told["choices"][0]["text"], told["triptych"], time.perf_counter() - began


def _median(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.ttft_s for sample in samples)


async def run(config: ClusterConfig, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    async with (
        Network.create() as network,
        distant_cluster(network, config, folder) as cluster,
    ):
        rows = await measure(cluster, options.chunk, options.chunks, options.mbit, options.rounds)
        cut = await cut_in_transfer(cluster, options.chunk * options.chunks, min(options.mbit))
    return {"rows": rows, "cut": cut}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mbit", type=float, nargs="*", default=[20.0, 100.0, 1000.0])
    parser.add_argument("--chunk", type=int, default=256, help="tokens of a chunk")
    parser.add_argument("--chunks", type=int, default=4, help="of the prompt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="int4", choices=DTYPES)
    parser.add_argument("--set", action="append", default=[], help="config override, e.g. a.b=1")
    parser.add_argument("--save", type=Path, help="keep the result with machine and commit")
    options = parser.parse_args()
    if options.model == "smollm2-135m":
        pull_model(options.model)
    config = load_config(
        None,
        [
            f"model={options.model}",
            f"dtype={options.dtype}",
            "served_model_name=bench",
            "router.host=0.0.0.0",
            "router.placement=least-loaded",  # a prompt is handed over whenever it can be
            "transport.links=[tcp]",
            "speculation.mode=off",
            f"engine.chunk_tokens={options.chunk}",
            "pools=[{name: prefill, role: prefill}, {name: decode, role: decode, threads: 1}]",
            *options.set,
        ],
    )
    with tempfile.TemporaryDirectory(prefix="triptych-hosts-") as folder:
        result = asyncio.run(run(config, options, Path(folder)))
    columns = list(result["rows"][0])
    rows = [[row[key] for key in columns] for row in result["rows"]]
    print_table("KV between two hosts", columns, rows)
    cut = result["cut"]
    print(
        f"link cut for {cut['cut_s']:.0f} s in mid-transfer: the same answer: {cut['same']}, "
        f"after {cut['cut_answer_s']:.1f} s instead of {cut['calm_s']:.1f} s; "
        f"fallbacks: {cut['fallbacks']}"
    )
    finish(result, options.save)


if __name__ == "__main__":
    main()
