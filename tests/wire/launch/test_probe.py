from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from transport.channel import start_server
from triptych.config import ClusterConfig
from triptych.launch.plan import plan
from triptych.launch.ready import ClusterProbe, ClusterView
from triptych.launch.rundir import RunDir
from triptych.wire import to_status

URL = "http://127.0.0.1:8000"


class FakeRouter:
    """Counts `decode` decode workers and one prefill worker."""

    def __init__(self, decode: int, *, ready: bool = True) -> None:
        self._decode = decode
        self._ready = ready

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/ready":
            return httpx.Response(200 if self._ready else 503, json={"status": "…"})
        lines = [
            f'triptych_attached_workers{{role="decode"}} {self._decode}',
            'triptych_attached_workers{role="prefill"} 1',
        ]
        return httpx.Response(200, text="\n".join(lines) + "\n")


async def look(place: RunDir, router: FakeRouter) -> ClusterView:
    specs = plan(ClusterConfig(), place.path, cores=1)
    async with httpx.AsyncClient(transport=httpx.MockTransport(router)) as client:
        return await ClusterProbe(place, specs, client).look()


@pytest.fixture
def place(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def listens(place: RunDir) -> None:
    place.router_file.write_text(f'{{"url": "{URL}"}}')


async def test_a_worker_serves_once_its_socket_says_so(place: RunDir) -> None:
    assert await look(place, FakeRouter(0)) == ClusterView()
    address = f"unix:{place.socket('decode-0')}"
    server = await start_server(address, [], [], to_status)
    assert await look(place, FakeRouter(0)) == ClusterView(serving=frozenset({"decode-0"}))
    await server.stop(0)
    assert await look(place, FakeRouter(0)) == ClusterView()


async def test_a_socket_that_a_dead_worker_left_is_no_worker(place: RunDir) -> None:
    place.socket("decode-0").touch()
    assert await look(place, FakeRouter(0)) == ClusterView()


@pytest.mark.parametrize(
    ("router", "complete"),
    [
        (FakeRouter(1), True),
        (FakeRouter(2), True),
        (FakeRouter(0), False),
        (FakeRouter(1, ready=False), False),
    ],
)
async def test_a_cluster_is_complete_when_its_router_counts_every_worker(
    place: RunDir, router: FakeRouter, complete: bool
) -> None:
    listens(place)
    assert await look(place, router) == ClusterView(URL, complete=complete)


async def test_a_router_that_does_not_answer_does_not_listen(place: RunDir) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    listens(place)
    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        assert await ClusterProbe(place, [], client).look() == ClusterView()
