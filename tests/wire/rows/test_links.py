"""Rows over every link, from hello to good-bye."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from transport.rows.base import RowsRefused, RowsUnusable, WorkerGone
from transport.rows.hello import Offer
from transport.rows.library import SegmentShape
from transport.rows.links import connect_first, make_links
from transport.rows.segment import segment_bytes
from triptych.testing.kv_pools import wait_until

pytestmark = pytest.mark.timeout(60)


def test_rows_go_out_and_come_back(make_attention, make_thread_worker) -> None:
    attention, workers = make_attention(), [make_thread_worker(), make_thread_worker()]
    for number, worker in enumerate(workers):
        session = attention.connect(number, worker.endpoints, name="a0")
        assert session.reply == {"you_are": "a0"}
    attention.host(0, 1)
    for _ in range(20):
        lanes = [attention.begin(int(attention.random.integers(1, 64)), 4, lane=n) for n in (0, 1)]
        for lane, expected in enumerate(lanes):
            attention.finish(expected, lane)
    assert all(int(attention.exchange.stats[n]["accepted"]) for n in (0, 1))


def test_a_call_larger_than_all_slots_comes_back_whole(make_attention, make_thread_worker) -> None:
    attention, worker = make_attention(row_type="bfloat16"), make_thread_worker()
    attention.connect(0, worker.endpoints)
    attention.host(0)
    attention.finish(attention.begin(64, 4))
    assert int(attention.exchange.stats[0]["sent"]) >= 8, "there are 4 slots of 32 cells"


def test_many_attention_processes_share_a_worker(make_attention, make_thread_worker) -> None:
    worker = make_thread_worker()
    sides = [make_attention(seed=seed) for seed in range(3)]
    for attention in sides:
        attention.connect(0, worker.endpoints)
        attention.host(0)

    def use(attention) -> None:
        for _ in range(50):
            attention.finish(attention.begin(int(attention.random.integers(0, 30)), 3))

    threads = [threading.Thread(target=use, args=(attention,)) for attention in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = sum(int(a.exchange.stats[0]["sent"]) for a in sides)
    assert sum(int(a.exchange.stats[0]["accepted"]) for a in sides) == sent > 0


def test_an_attention_process_that_does_not_listen_delays_nobody(
    make_attention, make_thread_worker
) -> None:
    worker = make_thread_worker()
    slow, quick = make_attention(), make_attention()
    for attention in (slow, quick):
        attention.connect(0, worker.endpoints)
        attention.host(0)
    expected = slow.begin(16, 2)
    for _ in range(20):
        quick.finish(quick.begin(16, 2))
    slow.finish(expected)


def test_a_worker_says_why_it_refuses(make_attention, make_thread_worker) -> None:
    worker = make_thread_worker(refuse="your weights are others")
    with pytest.raises(RowsRefused, match="your weights are others"):
        make_attention().connect(0, worker.endpoints)
    assert int(worker.inbox.stats[0]["peers"]) == 0


def test_rows_of_another_width_are_refused(make_attention, make_thread_worker, link) -> None:
    attention, worker = make_attention(), make_thread_worker()
    offer = Offer(SegmentShape(32), 1, {})
    with pytest.raises(RowsRefused, match="rows have 24 columns here, not 32"):
        link.connect(worker.endpoints[link.name], offer, attention.bell, lambda _: None)


def test_a_segment_beyond_the_budget_is_refused(
    make_attention, make_thread_worker, link, owned
) -> None:
    attention, worker = make_attention(), make_thread_worker()
    server = link.serve(worker.inbox, lambda _: {}, 1, budget_bytes=10_000)
    owned.callback(server.close)
    with pytest.raises(RowsRefused, match="10000 are left here"):
        attention.connect(0, {link.name: server.endpoint})


def test_whoever_leaves_is_forgotten_and_gives_its_memory_back(
    make_attention, make_thread_worker, link, owned, library
) -> None:
    worker, waiting = make_thread_worker(), make_attention()
    budget = segment_bytes(library, waiting.shape) * 3 // 2  # of one attention process, not two
    server = link.serve(worker.inbox, lambda _: {}, 1, budget_bytes=budget)
    owned.callback(server.close)
    endpoints = {link.name: server.endpoint}

    def try_in(attention) -> bool:
        try:
            return bool(attention.connect(0, endpoints))
        except RowsRefused:
            return False

    for _ in range(3):
        present = make_attention()
        wait_until(lambda: try_in(present))  # noqa: B023 - it waits here
        present.host(0)
        present.finish(present.begin(5, 2))
        with pytest.raises(RowsRefused):
            waiting.connect(0, endpoints)
        present.exchange.drop_worker(0)
        present.sessions[0].close()
    wait_until(lambda: int(worker.inbox.stats[0]["peers"]) == 0)


def test_a_server_that_closes_is_noticed(make_attention, make_thread_worker, link, owned) -> None:
    worker, attention = make_thread_worker(), make_attention()
    server = link.serve(worker.inbox, lambda _: {}, 1)
    session = attention.connect(0, {link.name: server.endpoint})
    assert session.alive
    endpoint = server.endpoint
    server.close()
    assert attention.exchange.wait(20_000_000).rung
    assert attention.lost == [session] and not session.alive
    with pytest.raises((WorkerGone, RowsUnusable)):
        attention.connect(1, {link.name: endpoint})


def test_an_endpoint_that_makes_no_sense_is_unusable(make_attention, link) -> None:
    attention = make_attention()
    for text in ("", "[]", "{}", json.dumps({"host": 1, "socket": 2})):
        with pytest.raises(RowsUnusable):
            attention.connect(0, {link.name: text})


def test_strangers_at_the_door_harm_nobody(make_attention, make_thread_worker, link) -> None:
    worker, attention = make_thread_worker(), make_attention()
    where = json.loads(worker.endpoints[link.name])
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n" * 20, b"\0" * 200, b"TKV1" + b"\xff" * 40):
        if link.name == "shm":
            stranger = socket.socket(socket.AF_UNIX)
            stranger.connect(where["socket"])
        else:
            stranger = socket.create_connection((where["host"], where["port"]))
        with stranger:
            stranger.sendall(words)
    attention.connect(0, worker.endpoints)
    attention.host(0)
    attention.finish(attention.begin(5, 2))


def test_the_first_link_that_works_is_taken(
    library, run_dir: Path, make_thread_worker, make_attention
) -> None:
    worker, attention = make_thread_worker(), make_attention()
    links = make_links(["shm", "tcp"], library, run_dir)
    elsewhere = {**json.loads(worker.endpoints["shm"]), "boot_id": "another"}
    endpoints = {**worker.endpoints, "shm": json.dumps(elsewhere)}
    offer = Offer(attention.shape, 1, {})
    for given, path in ((worker.endpoints, "shm"), (endpoints, "tcp")):
        session = connect_first(links, given, offer, attention.bell, lambda _: None)
        assert session.path == path
        session.close()
    del endpoints["tcp"]
    with pytest.raises(RowsUnusable, match="shm: the worker runs on another host"):
        connect_first(links, endpoints, offer, attention.bell, lambda _: None)
    with pytest.raises(ValueError, match="'rdma'"):
        make_links(["rdma"], library, run_dir)


def test_only_our_own_user_may_connect(make_thread_worker) -> None:
    worker = make_thread_worker()
    path = Path(json.loads(worker.endpoints["shm"])["socket"])
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    worker.close()
    assert not path.exists()


@pytest.mark.parametrize("link", ["tcp"], indirect=True)  # unix sockets have file modes
def test_a_token_is_wanted_over_tcp(make_attention, make_thread_worker, link) -> None:
    attention, worker = make_attention(), make_thread_worker()
    endpoint = {**json.loads(worker.endpoints["tcp"]), "token": "guessed"}
    with pytest.raises(RowsRefused, match="wrong token"):
        attention.connect(0, {"tcp": json.dumps(endpoint)})
