from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import httpx
import pytest

from triptych.launch.base import ProcessState
from triptych.launch.ready import ClusterView, RouterProbe, judge
from triptych.launch.rundir import RunDir

URL = "http://127.0.0.1:8000"
URLS = {"router": URL}


@pytest.mark.parametrize(
    ("name", "when", "view", "said", "expected"),
    [
        ("router", "listening", ClusterView(), "", (ProcessState.STARTING, "")),
        ("router", "listening", ClusterView(), "binding", (ProcessState.LOADING, "binding")),
        ("router", "listening", ClusterView(URLS), "binding", (ProcessState.READY, URL)),
        ("decode-0", "attached", ClusterView(URLS), "7/30", (ProcessState.LOADING, "7/30")),
        (
            "decode-0",
            "attached",
            ClusterView(URLS, True, frozenset({"decode-0"})),
            "7/30",
            (ProcessState.READY, ""),
        ),
        (
            "decode-1",
            "attached",
            ClusterView(URLS, True, frozenset({"decode-0"})),
            "",
            (ProcessState.STARTING, ""),
        ),
    ],
)
def test_a_process_is_what_the_router_and_its_log_say(
    name: str,
    when: Literal["listening", "attached"],
    view: ClusterView,
    said: str,
    expected: tuple[ProcessState, str],
) -> None:
    assert judge(name, when, view, said) == expected


class FakeRouter:
    def __init__(self, *attached: str, ready: bool = True) -> None:
        self._attached = attached
        self._ready = ready

    def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.url.host == "127.0.0.1"
        if request.url.path == "/ready":
            return httpx.Response(200 if self._ready else 503, json={"status": "…"})
        workers = [{"worker_id": name, "role": "decode"} for name in self._attached]
        return httpx.Response(200, json={"workers": workers})


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (FakeRouter(), ClusterView(URLS, True)),
        (FakeRouter(ready=False), ClusterView(URLS, False)),
        (FakeRouter("decode-0"), ClusterView(URLS, True, frozenset({"decode-0"}))),
        (refuse, ClusterView()),
    ],
)
async def test_the_router_is_asked_where_it_says_that_it_listens(
    tmp_path: Path, router: Callable[[httpx.Request], httpx.Response], expected: ClusterView
) -> None:
    place = RunDir(tmp_path)
    async with httpx.AsyncClient(transport=httpx.MockTransport(router)) as client:
        probe = RouterProbe(place, client)
        assert await probe.look() == ClusterView()
        place.router_file().write_text(f'{{"url": "{URL}"}}')
        assert await probe.look() == expected


async def test_routers_are_ready_when_all_are_and_count_who_is_attached_to_all(
    tmp_path: Path,
) -> None:
    place, names = RunDir(tmp_path), ("router", "router-1")
    routers = {8000: FakeRouter("decode-0", "decode-1"), 8001: FakeRouter("decode-1")}

    def reply(request: httpx.Request) -> httpx.Response:
        return routers[request.url.port or 0](request)

    async with httpx.AsyncClient(transport=httpx.MockTransport(reply)) as client:
        probe = RouterProbe(place, client, names)
        place.router_file("router").write_text(f'{{"url": "{URL}"}}')
        assert await probe.look() == ClusterView(URLS)
        other = "http://127.0.0.1:8001"
        place.router_file("router-1").write_text(f'{{"url": "{other}"}}')
        both = {**URLS, "router-1": other}
        assert await probe.look() == ClusterView(both, True, frozenset({"decode-1"}))
