"""Is the cluster ready? What its processes say when asked, and what that means for each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from transport.channel import connect
from triptych.launch.base import ProcessState
from triptych.launch.plan import ProcessSpec, ReadyWhen
from triptych.launch.rundir import RunDir

_ANSWER_S = 2.0
_ATTACHED = "triptych_attached_workers"  # the router's gauge, by role


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What can be seen of a cluster from outside at one moment."""

    url: str | None = None  # of the router, once it answers
    serving: frozenset[str] = frozenset()  # ids of the workers whose health is SERVING
    complete: bool = False  # the router takes requests and counts every worker of the plan


class Probe(Protocol):
    async def look(self) -> ClusterView: ...


class ClusterProbe:
    """Asks the processes of one run directory; `client` must not go through a proxy."""

    def __init__(
        self, place: RunDir, specs: Sequence[ProcessSpec], client: httpx.AsyncClient
    ) -> None:
        self._place = place
        self._workers = [spec for spec in specs if spec.ready == "serving"]
        self._expected = Counter[str](spec.role for spec in self._workers)
        self._client = client

    async def look(self) -> ClusterView:
        names = [spec.name for spec in self._workers]
        healths = await asyncio.gather(*map(self._serves, names))
        serving = frozenset(name for name, serves in zip(names, healths, strict=True) if serves)
        url = self._place.router_url()
        if url is None:
            return ClusterView(serving=serving)
        try:
            ready = await self._client.get(f"{url}/ready", timeout=_ANSWER_S)
            metrics = await self._client.get(f"{url}/metrics", timeout=_ANSWER_S)
        except httpx.TransportError:  # it died, or it is busy: look again
            return ClusterView(serving=serving)
        attached = attached_workers(metrics.text)
        everybody = all(attached.get(role, 0) >= n for role, n in self._expected.items())
        return ClusterView(url, serving, ready.is_success and everybody)

    async def _serves(self, name: str) -> bool:
        socket = self._place.socket(name)
        if not socket.exists():
            return False
        try:
            async with connect(f"unix:{socket}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_ANSWER_S)
        except grpc.aio.AioRpcError:  # its predecessor's socket, or it is busy: look again
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def attached_workers(metrics: str) -> Mapping[str, int]:
    """Attached workers by role, from the text of the router's /metrics."""
    return {
        sample.labels["role"]: int(sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == _ATTACHED
    }


def judge(
    name: str, when: ReadyWhen, view: ClusterView, last_message: str
) -> tuple[ProcessState, str]:
    """State and detail of a running process."""
    if when == "listening" and view.url is not None:
        return ProcessState.READY, view.url
    if when == "serving" and name in view.serving:
        return ProcessState.READY, ""
    if last_message:
        return ProcessState.LOADING, last_message
    return ProcessState.STARTING, ""
