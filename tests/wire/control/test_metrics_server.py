"""/metrics, as a scraper sees it."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request

import pytest

from triptych.obs.metrics import MetricsServer, WorkerMetrics, new_registry


def scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        return reply.read().decode()


def test_a_scraper_reads_what_was_counted():
    registry = new_registry()
    metrics = WorkerMetrics(registry)
    server = MetricsServer(registry)
    try:
        metrics.steps.inc(3)
        assert "triptych_steps_total 3.0" in scrape(server.address)
        metrics.steps.inc()
        assert "triptych_steps_total 4.0" in scrape(server.address)
    finally:
        server.close()


def test_a_closed_server_leaves_no_thread_and_frees_its_port():
    before = set(threading.enumerate())
    first = MetricsServer(new_registry())
    port = int(first.address.rpartition(":")[2])
    scrape(first.address)
    first.close()
    first.close()
    assert {thread for thread in threading.enumerate() if thread.is_alive()} <= before
    second = MetricsServer(new_registry(), port=port)
    try:
        assert second.address == first.address
    finally:
        second.close()


def test_a_taken_port_is_refused():
    first = MetricsServer(new_registry())
    try:
        with pytest.raises(OSError, match="in use"):
            MetricsServer(new_registry(), port=int(first.address.rpartition(":")[2]))
    finally:
        first.close()


def test_checks_say_what_is_wrong():
    problem = ""
    server = MetricsServer(new_registry(), checks={"/ready": lambda: problem})
    url = f"http://{server.address}/ready"
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            assert (reply.status, reply.read()) == (200, b"ok\n")
        problem = "draining"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(url, timeout=10)
        with caught.value as answer:
            assert (answer.code, answer.read()) == (503, b"draining\n")
    finally:
        server.close()
