from __future__ import annotations

from typing import Literal

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from triptych.launch.base import ProcessState
from triptych.launch.ready import ClusterView, attached_workers, judge

URL = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("name", "when", "view", "said", "expected"),
    [
        ("router", "listening", ClusterView(), "", (ProcessState.STARTING, "")),
        ("router", "listening", ClusterView(), "binding", (ProcessState.LOADING, "binding")),
        ("router", "listening", ClusterView(URL), "binding", (ProcessState.READY, URL)),
        ("decode-0", "serving", ClusterView(URL), "7/30", (ProcessState.LOADING, "7/30")),
        (
            "decode-0",
            "serving",
            ClusterView(None, frozenset({"decode-0"})),
            "7/30",
            (ProcessState.READY, ""),
        ),
        (
            "decode-1",
            "serving",
            ClusterView(URL, frozenset({"decode-0"}), complete=True),
            "",
            (ProcessState.STARTING, ""),
        ),
    ],
)
def test_a_process_is_what_it_and_its_log_say(
    name: str,
    when: Literal["listening", "serving"],
    view: ClusterView,
    said: str,
    expected: tuple[ProcessState, str],
) -> None:
    assert judge(name, when, view, said) == expected


def test_attached_workers_are_read_from_the_routers_metrics() -> None:
    registry = CollectorRegistry()
    gauge = Gauge("triptych_attached_workers", "Workers", ["role"], registry=registry)
    gauge.labels("prefill").set(1)
    gauge.labels("decode").set(3)
    Gauge("triptych_live_streams", "Streams", registry=registry).set(7)
    text = generate_latest(registry).decode()
    assert attached_workers(text) == {"prefill": 1, "decode": 3}
