"""Is the cluster ready? What its routers say when asked, and what that means for each process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from triptych.launch.base import ProcessState
from triptych.launch.plan import ReadyWhen
from triptych.launch.rundir import RunDir

_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What can be seen of a cluster from outside at one moment."""

    urls: Mapping[str, str] = field(default_factory=dict)  # of the routers that answer, by name
    ready: bool = False  # GET /ready of all of them is a 200: requests will be taken
    attached: frozenset[str] = frozenset()  # ids of the workers that each of them counts


class Probe(Protocol):
    async def look(self) -> ClusterView: ...


class RouterProbe:
    """Asks the routers of one run directory; `client` must not go through a proxy."""

    def __init__(
        self, place: RunDir, client: httpx.AsyncClient, names: Sequence[str] = ("router",)
    ) -> None:
        self._place = place
        self._client = client
        self._names = names

    async def look(self) -> ClusterView:
        views = await asyncio.gather(*map(self._ask, self._names))
        return ClusterView(
            {name: url for view in views for name, url in view.urls.items()},
            all(view.ready for view in views),
            frozenset.intersection(*(view.attached for view in views)),
        )

    async def _ask(self, name: str) -> ClusterView:
        url = self._place.router_url(name)
        if url is None:
            return ClusterView()
        try:
            ready = await self._client.get(f"{url}/ready", timeout=_ANSWER_S)
            workers = await self._client.get(f"{url}/workers", timeout=_ANSWER_S)
        except httpx.TransportError:  # it died, or it is busy: look again
            return ClusterView()
        if workers.is_error:
            return ClusterView({name: url})
        attached = frozenset(worker["worker_id"] for worker in workers.json()["workers"])
        return ClusterView({name: url}, ready.is_success, attached)


def judge(
    name: str, when: ReadyWhen, view: ClusterView, last_message: str
) -> tuple[ProcessState, str]:
    """State and detail of a running process."""
    if when == "listening" and name in view.urls:
        return ProcessState.READY, view.urls[name]
    if when == "attached" and name in view.attached:
        return ProcessState.READY, ""
    if last_message:
        return ProcessState.LOADING, last_message
    return ProcessState.STARTING, ""
