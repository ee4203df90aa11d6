"""Workers that are killed, stopped and woken, as processes of their own."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.timeout(120)
FOREVER_US = 3_000_000_000


def test_a_worker_killed_in_mid_call_is_noticed_without_a_deadline(
    make_attention, make_process_worker
) -> None:
    attention = make_attention()
    victim, other = make_process_worker("--mode", "hold"), make_process_worker()
    for number, worker in enumerate((victim, other)):
        attention.connect(number, worker.endpoints)
        attention.exchange.set_deadline(number, FOREVER_US)
    attention.host(0)
    expected = attention.begin(16, 4)
    assert victim.line() == "held"
    attention.host(1)
    began = time.monotonic()
    victim.kill()
    attention.finish(expected)
    assert time.monotonic() - began < 10, "nobody waited for a deadline"
    assert not attention.sessions[0].alive and attention.sessions[1].alive
    assert int(attention.exchange.stats[0]["abandoned"]) > 0


def test_a_stopped_worker_costs_its_deadline_and_its_late_answer_is_ignored(
    make_attention, make_process_worker
) -> None:
    attention = make_attention()
    sleeper, other = make_process_worker(), make_process_worker()
    for number, worker in enumerate((sleeper, other)):
        attention.connect(number, worker.endpoints)
    attention.host(0)
    attention.exchange.set_deadline(0, 20_000)
    sleeper.stop()
    expected = attention.begin(16, 2)
    attention.host(0, 1)
    while not (wake := attention.exchange.wait(20_000_000)).done:
        assert wake.overdue
        for late in attention.exchange.overdue():
            assert attention.exchange.abandon(late.shard)
    attention.finish(expected)
    assert int(attention.exchange.stats[0]["quarantined"]) > 0
    sleeper.resume()
    while int(attention.exchange.stats[0]["quarantined"]):
        attention.exchange.wait(1_000)
    assert int(attention.exchange.stats[0]["late"]) == int(attention.exchange.stats[0]["abandoned"])
    attention.host(0)
    attention.exchange.set_deadline(0, FOREVER_US)
    attention.finish(attention.begin(16, 2))


def test_a_zombie_writes_into_memory_that_nobody_reads(make_attention, make_process_worker) -> None:
    attention = make_attention()
    zombie, other = make_process_worker("--mode", "hold"), make_process_worker()
    for number, worker in enumerate((zombie, other)):
        attention.connect(number, worker.endpoints)
    attention.host(0)
    first = attention.begin(16, 4)
    assert zombie.line() == "held"
    zombie.stop()
    attention.host(0, 1)
    attention.exchange.drop_worker(0)
    attention.finish(first)
    attention.sessions[0].close()
    attention.connect(0, other.endpoints)  # its number goes to another incarnation
    zombie.resume()
    zombie.answer()
    for _ in range(20):
        attention.finish(attention.begin(16, 4))
    assert int(attention.exchange.stats[0]["late"]) == 0
    assert int(attention.exchange.stats[0]["stray"]) == 0


def test_a_restarted_worker_takes_its_old_number(make_attention, make_process_worker) -> None:
    attention = make_attention()
    attention.host(0)
    for _ in range(2):
        worker = make_process_worker()
        attention.connect(0, worker.endpoints)
        attention.finish(attention.begin(8, 2))
        worker.kill()
        while not attention.lost:
            attention.exchange.wait(1_000_000)
        attention.drop_lost()
        assert attention.begin(1, 1, lane=1) is not None
        assert len(attention.exchange.missing(1)) == 1, "nobody is left"
        attention.exchange.end(1)
