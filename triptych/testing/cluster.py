"""A real cluster of local processes, for tests and benchmarks: start, ask, look inside, stop."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from triptych.config import ClusterConfig
from triptych.launch.local import LocalLauncher

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster. `url` is the router's."""

    url: str
    launcher: LocalLauncher
    http: httpx.AsyncClient

    async def workers(self) -> list[dict[str, Any]]:
        """The workers that are attached to the router."""
        answer = await self.http.get("/workers")
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["workers"]
        return found

    async def metrics(self, worker_id: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All samples of one worker's /metrics by (name, labels)."""
        (address,) = [
            worker["metrics_address"]
            for worker in await self.workers()
            if worker["worker_id"] == worker_id
        ]
        answer = await self.http.get(f"http://{address}/metrics")
        return parse_metrics(answer.text)

    async def kv_blocks(self) -> dict[str, dict[str, float]]:
        """Per worker: blocks by owner/state."""
        return {
            worker["worker_id"]: {
                "/".join(value for _, value in sorted(labels)): count
                for (name, labels), count in (await self.metrics(worker["worker_id"])).items()
                if name == "triptych_kv_blocks"
            }
            for worker in await self.workers()
        }

    async def until(
        self, condition: Callable[[dict[str, dict[str, float]]], bool], timeout_s: float
    ) -> dict[str, dict[str, float]]:
        """Polls `kv_blocks` until the condition holds; the last reading on time-out raises."""
        seen: dict[str, dict[str, float]] = {}
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    seen = await self.kv_blocks()
                    if condition(seen):
                        return seen
                    await asyncio.sleep(0.05)  # gauges have no events
        except TimeoutError:
            raise AssertionError(f"not within {timeout_s:g} s; kv_blocks: {seen}") from None


@contextlib.asynccontextmanager
async def running_cluster(
    config: ClusterConfig, run_dir: Path, *, timeout_s: float = 120.0
) -> AsyncIterator[Cluster]:
    """Starts the cluster, waits until it serves, stops it at the end. Port 0 is a free one."""
    async with LocalLauncher(config, run_dir) as launcher:
        url = await launcher.wait_ready(timeout_s)
        async with httpx.AsyncClient(base_url=url, timeout=600.0) as http:
            yield Cluster(url, launcher, http)


def parse_metrics(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of the Prometheus text format by (name, labels)."""
    found = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample:
            name, labels, value = sample.groups()
            found[name, frozenset(_LABEL.findall(labels or ""))] = float(value)
    return found
