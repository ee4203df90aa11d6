"""A real cluster of local processes, for tests and benchmarks: start, ask, look inside, stop."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from triptych.config import ClusterConfig
from triptych.launch.local import LocalLauncher

_T = TypeVar("_T")

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN)$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A running cluster, seen from outside. `url` is the router's, the first one's of several."""

    url: str
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

    async def worker(self, worker_id: str) -> dict[str, Any] | None:
        """What the router knows of a worker; None: it is not attached."""
        found = [w for w in await self.workers() if w["worker_id"] == worker_id]
        return found[0] if found else None

    async def until_at_rest(self, timeout_s: float) -> dict[str, dict[str, float]]:
        """Waits until no worker holds a block for a request or a transfer; `kv_blocks` then."""

        async def at_rest() -> dict[str, dict[str, float]] | None:
            seen = await self.kv_blocks()
            held = (
                count
                for states in seen.values()
                for state, count in states.items()
                if state.split("/")[0] in {"request", "transfer"}
            )
            return None if any(held) else seen

        return await eventually(at_rest, timeout_s)


@dataclass(frozen=True, slots=True)
class Cluster(ClusterView):
    """Of processes that we started on this machine."""

    launcher: LocalLauncher

    def pid(self, name: str) -> int:
        """Of worker `name`, or of the router, which must be running."""
        pid = self.launcher.pid(name)
        assert pid is not None, f"{name} is not running"
        return pid

    @contextlib.asynccontextmanager
    async def at_router(self, name: str) -> AsyncIterator[Cluster]:
        """The same cluster, asked at another one of its routers."""
        url = self.launcher.run_dir.router_url(name)
        assert url is not None, f"{name} does not listen"
        async with httpx.AsyncClient(base_url=url, timeout=600.0) as http:
            yield replace(self, url=url, http=http)


async def eventually(probe: Callable[[], Awaitable[_T | None]], timeout_s: float) -> _T:
    """The first answer of `probe` that is not None or False. Raises TimeoutError.

    For what happens in other processes, where there is no event to wait for.
    """
    async with asyncio.timeout(timeout_s):
        while True:
            found = await probe()
            if found is not None and found is not False:
                return found
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running_cluster(
    config: ClusterConfig, run_dir: Path, *, timeout_s: float = 120.0
) -> AsyncIterator[Cluster]:
    """Starts the cluster, waits until it serves, stops it at the end. Port 0 is a free one."""
    async with LocalLauncher(config, run_dir) as launcher:
        url = await launcher.wait_ready(timeout_s)
        async with httpx.AsyncClient(base_url=url, timeout=600.0) as http:
            yield Cluster(url, http, launcher)


def parse_metrics(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of the Prometheus text format by (name, labels)."""
    found = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample:
            name, labels, value = sample.groups()
            found[name, frozenset(_LABEL.findall(labels or ""))] = float(value)
    return found
