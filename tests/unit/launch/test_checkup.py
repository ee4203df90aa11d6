from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from triptych.config import load_config
from triptych.launch.checkup import check_cluster, count_workers, judge_paths
from triptych.launch.doctor import Finding

CONFIG = load_config(None, ["transport.links=[nixl, tcp]", "transport.require=nixl"])
PATHS = '# TYPE triptych_kv_path_info gauge\ntriptych_kv_path_info{path="nixl:rdma",peer="p-0"} 1\n'


def card(name: str, role: str, **more: Any) -> dict[str, Any]:
    addresses = {"address": "10.0.0.7:8000", "metrics_address": f"{name}:9090"}
    return {"worker_id": name, "role": role, "draining": False, **addresses, **more}


WORKERS = [card("d-0", "decode"), card("p-0", "prefill")]


def chat() -> httpx.Response:
    event = '{"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": "length"}]}'
    return httpx.Response(200, text=f"data: {event}\n\ndata: [DONE]\n\n")


def cluster(**odd: Callable[[], httpx.Response]) -> httpx.MockTransport:
    """Answers as a cluster that is well, but for what `odd` says by host or by the path's end."""
    answers: dict[str, Callable[[], httpx.Response]] = {
        "ready": lambda: httpx.Response(200, json={"status": "ok"}),
        "workers": lambda: httpx.Response(200, json={"workers": WORKERS}),
        "models": lambda: httpx.Response(200, json={"data": [{"id": "m"}]}),
        "completions": chat,
        "metrics": lambda: httpx.Response(200, text=PATHS),
        **odd,
    }

    def handle(request: httpx.Request) -> httpx.Response:
        return answers.get(request.url.host, answers[request.url.path.rpartition("/")[2]])()

    return httpx.MockTransport(handle)


async def problems(**odd: Callable[[], httpx.Response]) -> dict[str, str]:
    found = await check_cluster(CONFIG, "http://router:8000/v1", None, cluster(**odd))
    return {finding.name: finding.problem for finding in found if finding.problem}


def refused() -> httpx.Response:
    raise httpx.ConnectError("connection refused")


@pytest.mark.parametrize(
    ("required", "path", "wrong"),
    [
        ("nixl", "nixl:rdma", False),
        ("nixl", "nixl:tcp", False),
        ("nixl", "tcp", True),
        ("nixl:rdma", "nixl:rdma", False),
        ("nixl:rdma", "nixl:tcp", True),
    ],
)
def test_a_path_that_is_not_the_required_one_is_told(required: str, path: str, wrong: bool) -> None:
    config = load_config(None, ["transport.links=[nixl, tcp]", f"transport.require={required}"])
    [finding] = judge_paths(config, "d-0", PATHS.replace("nixl:rdma", path))
    assert bool(finding.problem) == wrong


async def test_a_cluster_that_is_well_has_no_problem_and_shows_its_workers_and_paths() -> None:
    found = await check_cluster(CONFIG, "http://router:8000", None, cluster())
    assert not [finding for finding in found if finding.problem]
    shown = {finding.name: finding.value for finding in found}
    assert shown["decode workers"] == "1 of 1"
    assert shown["d-0"] == "decode, gRPC at 10.0.0.7:8000, metrics at d-0:9090"
    assert shown["KV path"] == "p-0 to p-0: nixl:rdma"
    assert shown["completion"] == "1 pieces of text"


async def test_a_router_that_nobody_hears_is_the_only_finding() -> None:
    found = await problems(router=refused)
    assert found == {"router": "does not answer as a router: connection refused"}


async def test_something_else_behind_the_url_is_told() -> None:
    page = httpx.Response(200, text="<html>")
    assert "does not answer as a router" in (await problems(router=lambda: page))["router"]


async def test_a_router_without_decode_workers_says_why_it_is_not_ready() -> None:
    reply = httpx.Response(503, json={"error": {"message": "no decode worker is attached"}})
    found = await problems(ready=lambda: reply)
    assert found["router"] == "no decode worker is attached"


async def test_a_worker_that_tells_an_address_of_its_own_host_cannot_be_reached() -> None:
    found = await problems(**{"p-0": refused})
    assert set(found) == {"p-0"}
    assert "p-0:9090 cannot be reached from here (connection refused)" in found["p-0"]
    assert "--host" in found["p-0"]


async def test_a_worker_that_is_not_ready_says_why() -> None:
    reply = httpx.Response(503, text="attached to no router\n")
    assert (await problems(**{"d-0": lambda: reply}))["d-0"] == "not ready: attached to no router"


async def test_an_answer_that_does_not_come_is_a_problem() -> None:
    reply = httpx.Response(401, json={"error": {"message": "wrong API key"}})
    assert (await problems(models=lambda: reply))["completion"] == "wrong API key"


@pytest.mark.parametrize("missing", [[], [card("d-0", "decode", draining=True)]])
def test_workers_that_are_missing_or_leave_are_missed(missing: list[dict[str, Any]]) -> None:
    decode, prefill = sorted(
        count_workers(CONFIG, [*missing, WORKERS[1]]), key=lambda finding: finding.name
    )
    assert (decode.value, prefill.value) == ("0 of 1", "1 of 1")
    assert "not attached" in decode.problem and not prefill.problem


def test_a_path_that_is_not_the_required_one_is_a_problem() -> None:
    metrics = PATHS.replace("nixl:rdma", "tcp")
    expected = Finding("KV path", "p-0 to d-0: tcp", "transport.require says nixl")
    assert judge_paths(CONFIG, "d-0", metrics) == [expected]
    assert not judge_paths(load_config(), "d-0", metrics)[0].problem
