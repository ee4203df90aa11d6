"""A home whose units are elsewhere gives the bits of one that has them all, whatever becomes of the
workers.
"""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
import torch

from triptych.engine.thread import StepThread
from triptych.experts.units import Unit

TIMEOUT_S = 60


def split(worker_units: list[Unit], count: int) -> list[list[Unit]]:
    return [worker_units[index::count] for index in range(count)]


def sent(home, *numbers: int) -> int:
    return sum(home.stat(number, "sent") for number in numbers)


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_rows_that_go_to_two_workers_come_back_with_the_same_bits(
    make_ffn, make_home, checkpoint, jobs, lanes: int
) -> None:
    home = make_home(micro_batches=lanes, slots=4, slot_rows=16)  # they have to wait for slots
    everything = list(make_ffn().units)
    for number, share in enumerate(split(everything, 2)):
        home.join(number, make_ffn(share))
    wanted = checkpoint.wanted(jobs)
    for _ in range(3):
        assert torch.equal(home.forward(jobs), wanted)
    assert all(home.stat(number, "accepted") > 0 for number in (0, 1))
    tally = home.experts.tally
    assert tally.rows_at_home == tally.late == tally.lost == 0
    assert (tally.workers, tally.steps, tally.micro_batches) == (2, 3, 3 * lanes)
    assert tally.attention_s > 0 and tally.stall_s > 0
    counts = home.experts.rows_sent
    rows = 3 * sum(job.num_rows for job in jobs)
    top_k = 1 if checkpoint.model.config.moe is None else 2
    for layer, units in enumerate(home.experts.units.per_layer):
        assert counts[layer].sum() == (rows * top_k if units else 0)


def test_a_worker_that_is_lost_in_mid_layer_loses_no_row(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home, workers = make_home(), [make_ffn(), make_ffn()]
    for number, worker in enumerate(workers):
        home.join(number, worker)
    workers[0].hold()
    forward = home.start(jobs)
    home.until(lambda: home.stat(0, "pending") > 0, forward)
    home.leave(0)
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.experts.tally.lost > 0 and home.experts.tally.rows_at_home == 0
    before = sent(home, 0)
    workers[0].release()  # what it writes now, nobody reads
    assert torch.equal(home.forward(jobs), checkpoint.wanted(jobs))
    assert sent(home, 0) == before


def test_without_any_worker_left_the_home_computes(
    make_ffn, make_home, checkpoint, jobs, caplog
) -> None:
    home, workers = make_home(), [make_ffn(), make_ffn()]
    for number, worker in enumerate(workers):
        home.join(number, worker)
        worker.hold()
    forward = home.start(jobs)
    home.until(lambda: home.stat(0, "pending") + home.stat(1, "pending") > 0, forward)
    for number in (0, 1):
        home.leave(number)
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.experts.tally.rows_at_home > 0 and home.experts.tally.workers == 0
    assert any("no FFN worker computes" in message for message in caplog.messages)
    # Another one comes: then everything is sent there again.
    caplog.set_level(logging.INFO)
    home.join(0, make_ffn())
    home.experts.take_changes()
    at_home = home.experts.tally.rows_at_home
    assert torch.equal(home.forward(jobs), checkpoint.wanted(jobs))
    assert home.experts.tally.rows_at_home == at_home
    assert any("host everything again" in message for message in caplog.messages)


def test_a_worker_that_does_not_answer_is_bypassed_and_asked_again_when_it_has(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home, workers = make_home(min_deadline_ms=300), [make_ffn(), make_ffn()]
    for number, worker in enumerate(workers):
        home.join(number, worker)
    wanted = checkpoint.wanted(jobs)
    workers[0].hold()
    assert torch.equal(home.forward(jobs), wanted)
    assert home.experts.tally.late > 0 and home.stat(0, "quarantined") > 0
    before = sent(home, 0)
    assert torch.equal(home.forward(jobs), wanted)
    assert sent(home, 0) == before, "it rests"
    workers[0].release()
    for _ in range(1000):
        assert torch.equal(home.forward(jobs), wanted)
        if sent(home, 0) > before:
            break
    assert sent(home, 0) > before and home.stat(0, "quarantined") == 0
    assert home.experts.tally.rows_at_home == 0


def test_a_deadline_that_passes_while_another_lane_comes_back_is_not_forgotten(
    make_ffn, make_home, checkpoint
) -> None:
    home, workers = make_home(min_deadline_ms=50), [make_ffn(), make_ffn()]
    for number, worker in enumerate(workers):
        home.join(number, worker)
    experts, rows = home.experts, torch.ones(3, checkpoint.model.config.hidden_size)
    dense = checkpoint.model.config.moe is None
    ids = None if dense else torch.zeros(3, 1, dtype=torch.int32)
    workers[0].hold()
    experts.num_lanes(6)
    for lane in (0, 1):  # one of them goes to the worker that stands still
        experts.send(lane, 0, rows, ids)
    assert home.stat(0, "sent") == home.stat(1, "sent") == 1
    late = time.monotonic() + 0.1
    while time.monotonic() < late or not workers[1].inbox.stats[0]["shards"]:
        pass
    [first] = experts.returned()
    cells = experts.cells(first).clone()
    experts.end(first)
    [second] = experts.returned()
    assert {first, second} == {0, 1} and torch.equal(experts.cells(second), cells)
    experts.end(second)
    assert experts.tally.late == 1


def test_the_last_copy_gets_more_time_then_the_home_goes_on_without_it(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    """With so few slots that rows of the other lane wait for one, which never comes back."""
    home, worker = make_home(min_deadline_ms=10, slots=4, slot_rows=16), make_ffn()
    home.join(0, worker)
    wanted = checkpoint.wanted(jobs)
    worker.hold()
    assert torch.equal(home.forward(jobs), wanted)
    assert home.experts.tally.late > 0 and home.experts.tally.rows_at_home > 0
    before = sent(home, 0)
    assert torch.equal(home.forward(jobs), wanted)
    assert sent(home, 0) == before, "it was given up"
    worker.release()
    for _ in range(1000):
        assert torch.equal(home.forward(jobs), wanted)
        if sent(home, 0) > before:
            break
    assert sent(home, 0) > before


def test_a_silent_worker_without_a_free_slot_does_not_keep_what_only_it_hosts(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    """Its first layer has another host, so all its slots are given up there."""
    home, silent = make_home(min_deadline_ms=10, slots=4, slot_rows=16), make_ffn()
    other = make_ffn([unit for unit in silent.units if unit.layer == 0])
    for number, worker in enumerate((silent, other)):
        home.join(number, worker)
    silent.hold()
    forward = home.start(jobs)
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.stat(0, "quarantined") == 4 and home.experts.tally.rows_at_home > 0
    silent.release()


def test_a_late_answer_is_waited_for_where_there_is_no_other_host(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home, worker = make_home(min_deadline_ms=100), make_ffn()
    home.join(0, worker)
    worker.hold()
    forward = home.start(jobs)
    home.until(lambda: home.stat(0, "pending") > 0, forward)
    late = time.monotonic() + 0.2
    home.until(lambda: time.monotonic() > late, forward)
    worker.release()
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.experts.tally.late == home.experts.tally.rows_at_home == 0


def test_rows_for_a_unit_that_is_gone_are_refused_and_go_elsewhere(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home, workers = make_home(), [make_ffn(), make_ffn()]
    for number, worker in enumerate(workers):
        home.join(number, worker)
    workers[0].host(list(workers[0].units)[1:2])  # the home does not hear of it
    assert torch.equal(home.forward(jobs), checkpoint.wanted(jobs))
    assert home.stat(0, "refused_not_here") > 0
    assert home.experts.tally.rows_at_home == 0
    workers[1].host([])
    assert torch.equal(home.forward(jobs), checkpoint.wanted(jobs))
    assert home.experts.tally.rows_at_home > 0


def test_a_home_waits_for_its_first_worker(make_ffn, make_home, checkpoint, jobs) -> None:
    home = make_home(awaited=True)
    everything = list(make_ffn().units)
    shares = split(everything, 2)
    forward = home.start(jobs)
    home.join(0, make_ffn(shares[0]))
    home.until(lambda: home.stat(0, "accepted") > 0, forward)
    home.join(1, make_ffn(shares[1]))
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.experts.tally.rows_at_home == 0


def test_a_home_that_awaits_nobody_computes_at_once_until_somebody_comes(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home = make_home()
    wanted = checkpoint.wanted(jobs)
    assert torch.equal(home.forward(jobs), wanted)
    at_home = home.experts.tally.rows_at_home
    assert at_home > 0
    worker = make_ffn()
    home.connect(0, worker)  # it is there, but offers nothing yet
    assert torch.equal(home.forward(jobs), wanted)
    assert home.experts.tally.rows_at_home == 2 * at_home
    home.offer(0, worker.mask())
    assert torch.equal(home.forward(jobs), wanted)
    assert home.experts.tally.rows_at_home == 2 * at_home and home.stat(0, "accepted") > 0


def test_workers_come_and_go_and_units_move_while_rows_are_under_way(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    home, workers = make_home(), [make_ffn() for _ in range(3)]
    units = list(workers[0].units)
    wanted = checkpoint.wanted(jobs)
    draw = np.random.default_rng(3)
    home.join(0, workers[0])
    joined, left = {0}, []
    for _ in range(25):
        forward = home.start(jobs)
        while not forward.done():
            number = int(draw.integers(1, 3))
            if number in joined and draw.random() < 0.3:
                home.leave(number)
                left.append(home.sessions[number])
                joined.discard(number)
            elif number not in joined:
                home.connect(number, workers[number])
                joined.add(number)
            mask = np.zeros(home.experts.units.shape, bool)
            for unit in draw.permutation(len(units))[: int(draw.integers(len(units) + 1))]:
                mask[units[unit]] = True
            if number in joined:
                home.offer(number, mask)
        assert torch.equal(forward.result(TIMEOUT_S), wanted)
        home.experts.take_changes()
        while left:
            left.pop().close()
    assert home.experts.tally.rows_at_home == 0, "worker 0 hosted everything all the time"


def test_an_idle_home_hears_of_changes_at_once(make_ffn, make_home) -> None:
    home, worker = make_home(), make_ffn()
    thread = StepThread(lambda: False, pytest.fail, "home")
    thread.start()
    home.experts.run_on(lambda: thread.post(home.experts.take_changes))
    home.join(0, worker)
    known = threading.Event()
    home.experts.post(known.set)
    assert known.wait(TIMEOUT_S)
    assert (home.parts.exchange.tables[..., 0] == 0).sum() == len(list(worker.units))
    thread.stop()
    home.experts.run_on(home.experts.take_changes)
    home.leave(0)
    assert (home.parts.exchange.tables == -1).all()


def test_rows_that_are_rounded_give_the_same_bits_here_and_there(
    make_ffn, make_home, checkpoint, jobs
) -> None:
    """int8 rows change answers, but still not with the place where they are computed."""
    there, here = make_home(rows="int8"), make_home(rows="int8")
    there.join(0, make_ffn())
    found = there.forward(jobs)
    assert torch.equal(here.forward(jobs), found)
    assert here.experts.tally.rows_at_home > 0 == there.experts.tally.rows_at_home
    assert not torch.equal(found, checkpoint.wanted(jobs))


def test_deadlines_follow_what_is_usual(make_ffn, make_home, checkpoint, jobs) -> None:
    home, worker = make_home(min_deadline_ms=100), make_ffn()
    for number in (0, 1):
        home.join(number, worker if number == 0 else make_ffn())
    home.forward(jobs)
    for rows in (1, 8, 16, 32, 64):  # lanes are as large as one of these
        home.experts._patience.learn(rows, 30_000_000.0)
    worker.hold()
    forward = home.start(jobs)
    home.until(lambda: home.stat(0, "pending") > 0, forward)
    not_too_late = time.monotonic() + 0.3
    home.until(lambda: time.monotonic() > not_too_late, forward)
    worker.release()
    assert torch.equal(forward.result(TIMEOUT_S), checkpoint.wanted(jobs))
    assert home.experts.tally.late == 0
