"""Experts and FFNs in workers of their own change no token."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from triptych.testing.checkpoints import served_checkpoint, tiny_llama
from triptych.testing.cluster import Cluster, eventually
from triptych.testing.tiny_mixture import tiny_mixture
from triptych_kernels.cpu.native import native

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(native() is None, reason="no native kernels here"),
]

StartCluster = Callable[..., contextlib.AbstractAsyncContextManager[Cluster]]
Answers = list[list[list[int]]]

ALONE = "pools=[{name: decode, role: decode, threads: 1}]"
FFN = "{name: ffn, role: ffn, replicas: 2, threads: 1}"
WITH_FFN = f"pools=[{{name: decode, role: decode, threads: 1}}, {FFN}]"
WITH_PREFILL = (
    f"pools=[{{name: prefill, role: prefill, threads: 1}}, "
    f"{{name: decode, role: decode, threads: 1}}, {FFN}]"
)
PATIENT = "experts.min_deadline_ms=5000"  # the machine may be busy
DICE = [
    "speculation.mode=dice",
    "speculation.drafters=[{kind: suffix, trees: true}, {kind: ngram, min_n: 1}]",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A mixture, a dense model, and one with names and attention of its own."""
    return {
        "mixture": tiny_mixture(tmp_path_factory.mktemp("mixture")),
        "dense": tiny_llama(tmp_path_factory.mktemp("dense")),
        "nsa": served_checkpoint(tmp_path_factory.mktemp("nsa"), "nsa"),
    }


@pytest.fixture(scope="module")
def alone(start_cluster: StartCluster, models: dict[str, Path]) -> Callable[[str], Answers]:
    """alone(name of a model) → answers of one process that computes everything."""

    @functools.cache
    def of(name: str) -> Answers:
        async def ask() -> Answers:
            async with start_cluster(f"model={models[name]}", ALONE) as cluster:
                return await answers(cluster)

        with ThreadPoolExecutor(1) as executor:  # beside the test's event loop
            return executor.submit(asyncio.run, ask()).result()

    return of


def bodies() -> list[dict[str, Any]]:
    draw = random.Random(3)
    found = []
    for index, length in enumerate((1, 20, 64, 65, 300, 90)):
        prompt = [draw.randrange(3, 250) for _ in range(length)]
        body: dict[str, Any] = {"model": "tiny", "prompt": prompt, "max_tokens": 16}
        body |= {"ignore_eos": True, "return_token_ids": True, "temperature": 0.0}
        if index % 2:
            body |= {"temperature": 0.9, "seed": index, "top_p": 0.95, "n": 1 + index % 3}
        found.append(body)
    return found


async def answers(cluster: Cluster) -> Answers:
    replies = await asyncio.gather(
        *(cluster.http.post("/v1/completions", json=body) for body in bodies())
    )
    found = []
    for reply in replies:
        assert reply.status_code == 200, reply.text
        choices = sorted(reply.json()["choices"], key=lambda choice: int(choice["index"]))
        found.append([choice["token_ids"] for choice in choices])
    return found


async def metric(cluster: Cluster, worker_id: str, name: str) -> float:
    seen = await cluster.metrics(worker_id)
    return sum(value for (found, _), value in seen.items() if found == f"triptych_ffn_{name}")


async def connected(cluster: Cluster, home: str, count: int) -> None:
    async def probe() -> bool:
        return await metric(cluster, home, "workers") == count

    await eventually(probe, timeout_s=30)


TOPOLOGIES = {
    "mixture": ("mixture", [WITH_FFN]),
    "mixture, prefill and decode, tcp, three lanes": (
        "mixture",
        [
            WITH_PREFILL,
            "experts.links=[tcp]",
            "experts.micro_batches=3",
            "engine.chunk_tokens=64",
        ],
    ),
    "mixture, drafts by dice, no second copies": (
        "mixture",
        [WITH_FFN, *DICE, "experts.copies=1", "experts.micro_batches=2"],
    ),
    "dense, prefill and decode, drafts by dice": ("dense", [WITH_PREFILL, *DICE]),
    "NSA, three lanes, drafts by dice": ("nsa", [WITH_FFN, *DICE, "experts.micro_batches=3"]),
    "dense, layers divided": (
        "dense",
        [WITH_FFN, "experts.copies=1", "experts.dense=layer", "experts.micro_batches=2"],
    ),
}


@pytest.mark.parametrize("topology", TOPOLOGIES)
async def test_a_cluster_with_ffn_workers_gives_the_tokens_of_one_process(
    start_cluster: StartCluster,
    models: dict[str, Path],
    alone: Callable[[str], Answers],
    topology: str,
) -> None:
    name, overrides = TOPOLOGIES[topology]
    async with start_cluster(f"model={models[name]}", PATIENT, *overrides) as cluster:
        homes = [w["worker_id"] for w in await cluster.workers() if w["role"] != "ffn"]
        for home in homes:
            await connected(cluster, home, 2)
        before = await cluster.kv_blocks()
        for _ in ("cold", "warm"):
            assert await answers(cluster) == alone(name)
        for home in homes:
            assert await metric(cluster, home, "steps_total") > 0
            assert await metric(cluster, home, "rows_at_home_total") == 0
        for worker in ("ffn-0", "ffn-1"):
            assert await metric(cluster, worker, "messages_answered_total") > 0
            assert await metric(cluster, worker, "homes") == len(homes)
            assert await metric(cluster, worker, "units") > 0
        after = await cluster.until_at_rest(timeout_s=5)
        for worker, states in before.items():
            assert sum(after[worker].values()) == sum(states.values())


EMPTY = (
    "pools=[{name: decode, role: decode, threads: 1}, "
    "{name: ffn, role: ffn, replicas: 0, threads: 1}]"
)


async def test_an_empty_pool_is_no_reason_to_wait_and_whoever_comes_is_given_units(
    start_cluster: StartCluster, models: dict[str, Path], alone: Callable[[str], Answers]
) -> None:
    overrides = [f"model={models['mixture']}", EMPTY, "experts.run=remote", PATIENT]
    async with start_cluster(*overrides) as cluster:
        assert await answers(cluster) == alone("mixture")
        at_home = await metric(cluster, "decode-0", "rows_at_home_total")
        assert at_home > 0 and await metric(cluster, "decode-0", "workers") == 0
        log = (cluster.launcher.run_dir.path / "logs" / "decode-0.log").read_text()
        assert "this process begins to compute units" in log

        async with late_worker(cluster):

            async def hosts_everything() -> bool:
                worker = await cluster.worker("ffn-0")
                return worker is not None and await metric(cluster, "ffn-0", "units") == 16

            await eventually(hosts_everything, timeout_s=60)
            at_home = await metric(cluster, "decode-0", "rows_at_home_total")
            assert await answers(cluster) == alone("mixture")
            assert await metric(cluster, "decode-0", "rows_at_home_total") == at_home
        assert await answers(cluster) == alone("mixture"), "and without it again"


@contextlib.asynccontextmanager
async def late_worker(cluster: Cluster) -> AsyncIterator[None]:
    """An FFN worker beyond the pool's size, as somebody would start it by hand."""
    place = str(cluster.launcher.run_dir.path)
    where = ["--config", f"{place}/config.yaml", "--run-dir", place]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ffn_worker", "--pool", "ffn", "--id", "ffn-0"),
        *where,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0
