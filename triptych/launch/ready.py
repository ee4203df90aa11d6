"""Is the cluster ready? What its router says when asked, and what that means for each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import httpx

from triptych.launch.base import ProcessState
from triptych.launch.plan import ReadyWhen
from triptych.launch.rundir import RunDir

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What can be seen of a cluster from outside at one moment."""

    url: str | None = None  # of the router, once it answers
    ready: bool = False  # its GET /ready is a 200: requests will be taken
    attached: frozenset[str] = frozenset()  # ids of the workers that it counts


class Probe(Protocol):
    async def look(self) -> ClusterView: ...


class RouterProbe:
    """Asks the router of one run directory; `client` must not go through a proxy."""

    def __init__(self, place: RunDir, client: httpx.AsyncClient) -> None:
        self._place = place
        self._client = client

    async def look(self) -> ClusterView:
        url = self._place.router_url()
        if url is None:
            return ClusterView()
        try:
            ready = await self._client.get(f"{url}/ready", timeout=_ANSWER_S)
            workers = await self._client.get(f"{url}/workers", timeout=_ANSWER_S)
        except httpx.TransportError:  # it died, or it is busy: look again
            return ClusterView()
        if workers.is_error:
            return ClusterView(url)
        names = frozenset(worker["worker_id"] for worker in workers.json()["workers"])
        return ClusterView(url, ready.is_success, names)


def judge(
    name: str, when: ReadyWhen, view: ClusterView, last_message: str
) -> tuple[ProcessState, str]:
    """State and detail of a running process."""
    if when == "listening" and view.url is not None:
        return ProcessState.READY, view.url
    if when == "attached" and name in view.attached:
        return ProcessState.READY, ""
    if last_message:
        return ProcessState.LOADING, last_message
    return ProcessState.STARTING, ""
