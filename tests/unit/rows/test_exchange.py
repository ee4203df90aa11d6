"""What A does with workers that do as they should, and with those that do not."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from transport.rows.exchange import Wake
from transport.rows.stats import BUSY, ERROR, NOT_HERE, STALE

NOTHING = Wake(0, 0, False, False)


def test_every_cell_comes_back_to_its_place(make_side) -> None:
    side = make_side(workers=1)
    side.begin([[0, 3, 5], [1, 3, 9], [0, 5, 15]])
    worker = side.workers[0]
    [shard] = worker.collect()
    assert len(shard.rows) == 3, "each row travels once, whatever it wants"
    assert shard.cells["expert"].tolist() == [0, 0, 1, 3, 3, 5, 5, 9, 15]
    assert side.exchange.wait(0) == NOTHING
    worker.answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


@pytest.mark.parametrize("types", [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_narrow_types_bring_whole_numbers_back_exactly(make_side, types) -> None:
    side = make_side(workers=1, row_type=types[0], cell_type=types[1])
    side.begin([[0, 1], [1, 2]], layer=0)
    [shard] = side.workers[0].collect()
    side.workers[0].answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_a_dense_layer_brings_float32_rows(make_side) -> None:
    side = make_side(workers=1, row_type="bfloat16", cell_type="bfloat16")
    side.begin(None, rows=40)
    shards = side.workers[0].collect()
    assert [len(shard.cells) for shard in shards] == [16, 16, 8], "a slot holds 16 float32 rows"
    for shard in shards:
        side.workers[0].answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_a_call_without_rows_is_complete_at_once(make_side) -> None:
    side = make_side()
    assert side.begin(None, rows=0) == 0
    assert side.exchange.wait(0).done == 1
    assert all(not worker.collect() for worker in side.workers.values())


def test_an_expert_that_does_not_exist_is_an_error_and_sends_nothing(make_side) -> None:
    side = make_side()
    with pytest.raises(ValueError, match="expert ids of layer 1"):
        side.begin([[0, 16]])
    assert not side.workers[0].collect() and not side.workers[1].collect()
    side.begin([[0, 1]])  # the lane is free


def test_an_expert_goes_to_one_of_its_replicas(make_side) -> None:
    side = make_side(workers=3)
    side.begin([[0, 1, 2, 3]] * 8)
    asked = {n: {int(e) for s in w.collect() for e in s.cells["expert"]}
             for n, w in side.workers.items()}  # fmt: skip
    assert sorted(e for experts in asked.values() for e in experts) == [0, 1, 2, 3]
    assert all(asked.values()), "the least loaded one is next"


def test_work_that_is_not_answered_counts_against_a_replica(make_side) -> None:
    side = make_side(workers=2)
    side.exchange.tables[:] = -1
    side.exchange.tables[:, 0, 0] = 0  # expert 0 lives on worker 0 alone
    side.exchange.tables[:, 1, :2] = (0, 1)
    side.begin([[0], [0], [0]])
    side.begin([[1], [1]], lane=1)
    assert [side.stat(n, "outstanding") for n in (0, 1)] == [3, 2]
    side.begin([[1]], lane=2)
    assert [side.stat(n, "outstanding") for n in (0, 1)] == [3, 3]


def test_a_large_expert_is_cut_over_its_replicas(make_side) -> None:
    side = make_side(workers=2, split_rows=8, slot_cells=64, slot_rows=64)
    side.begin([[3]] * 20)
    assert [side.stat(n, "outstanding") for n in (0, 1)] == [10, 10]
    side.begin([[4]] * 15, lane=1)
    assert sorted(side.stat(n, "outstanding") for n in (0, 1)) == [10, 25], "too few to cut"


def test_equal_replicas_are_chosen_the_same_way_every_time(make_side) -> None:
    choices = []
    for _ in range(2):
        side = make_side(workers=3)
        side.begin([[7]])
        choices.append([side.stat(n, "outstanding") for n in range(3)])
    assert choices[0] == choices[1]


def test_what_finds_no_slot_is_sent_when_one_comes_back(make_side) -> None:
    side = make_side(workers=1, slots=2, slot_cells=4)
    assert side.begin([[e] for e in range(16)]) == 0
    worker = side.workers[0]
    seen = 0
    while not (wake := side.exchange.wait(0)).done:
        assert wake == NOTHING
        shards = worker.collect()
        seen += len(shards)
        assert len([s for s in worker.shards if not s.answered]) <= 2
        worker.answer(next(s for s in worker.shards if not s.answered))
    assert seen == 4
    side.check_cells()


def test_a_shard_has_no_more_rows_than_a_slot(make_side) -> None:
    side = make_side(workers=1, slots=8, slot_rows=3)
    side.begin([[0, 1]] * 8)
    shards = side.workers[0].collect()
    assert all(len(shard.rows) <= 3 for shard in shards)
    for shard in shards:
        side.workers[0].answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


@pytest.mark.parametrize("status", [NOT_HERE, BUSY, STALE, ERROR])
def test_a_refused_shard_goes_to_another_replica(make_side, status) -> None:
    side = make_side(workers=2)
    side.begin([[2]])
    first = next(n for n in (0, 1) if side.stat(n, "outstanding"))
    [shard] = side.workers[first].collect()
    side.workers[first].answer(shard, status)
    assert side.exchange.wait(0) == NOTHING
    [shard] = side.workers[1 - first].collect()
    assert shard.head["attempt"] == 1
    side.workers[1 - first].answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()
    names = {NOT_HERE: "not_here", BUSY: "busy", STALE: "stale", ERROR: "error"}
    assert side.stat(first, f"refused_{names[status]}") == 1
    assert side.stat(first, "quarantined") == 0


def test_a_refusal_of_the_only_replica_is_told_once_and_tried_again_on_demand(make_side) -> None:
    side = make_side(workers=1)
    side.begin([[2], [3]])
    worker = side.workers[0]
    worker.answer(worker.collect()[0], BUSY)
    assert side.exchange.wait(0) == Wake(0, 1, False, False)
    assert side.exchange.wait(0) == NOTHING
    assert side.exchange.missing(0).tolist() == [[0, 2], [1, 3]]
    assert side.exchange.issue(0, forgiving=False) == 2
    assert side.exchange.issue(0) == 0
    worker.answer(worker.collect()[0])
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_cells_that_nobody_hosts_can_be_computed_at_home(make_side) -> None:
    side = make_side(workers=1)
    side.exchange.tables[:, 5] = -1
    assert side.begin([[1, 5], [5, 9]]) == 2
    assert side.exchange.missing(0).tolist() == [[1, 5], [2, 5]]
    worker = side.workers[0]
    worker.answer(worker.collect()[0])
    assert side.exchange.wait(0) == NOTHING
    rows = side.expected()[[1, 2]]
    cells = side.exchange.missing(0)[:, 0]
    assert side.exchange.fill(0, cells, rows.ctypes.data) == 2
    assert side.exchange.fill(0, cells, rows.ctypes.data) == 0, "they are in already"
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_what_a_worker_computes_is_not_filled_in(make_side) -> None:
    side = make_side(workers=1)
    side.begin([[1]])
    nonsense = np.full((1, 24), np.nan, np.float32)
    assert side.exchange.fill(0, np.array([0], np.int32), nonsense.ctypes.data) == 0
    side.workers[0].answer(side.workers[0].collect()[0])
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_new_tables_are_used_when_asked(make_side) -> None:
    side = make_side(workers=2)
    side.exchange.tables[:] = -1
    assert side.begin([[1]]) == 1
    side.host(1)
    assert side.exchange.issue(0) == 0
    side.workers[1].answer(side.workers[1].collect()[0])
    assert side.exchange.wait(0).done == 1


def test_a_dropped_worker_leaves_its_cells_to_others(make_side) -> None:
    side = make_side(workers=2)
    side.begin([[e] for e in range(8)])
    assert side.exchange.drop_worker(0)
    assert not side.exchange.drop_worker(0)
    assert side.exchange.wait(0) == NOTHING
    worker = side.workers[1]
    for shard in worker.collect():
        worker.answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()
    assert side.stat(0, "outstanding") == side.stat(0, "pending") == 0


def test_an_abandoned_slot_is_not_used_again_before_its_late_answer(make_side) -> None:
    side = make_side(workers=2, slots=1)
    side.host(0)
    side.begin([[2]])
    worker, other = side.workers[0], side.workers[1]
    [late] = worker.collect()
    assert side.exchange.abandon(int(late.head["shard"][0]))
    assert not side.exchange.abandon(int(late.head["shard"][0])), "it is not pending any more"
    side.host(0, 1)
    assert side.exchange.wait(0) == NOTHING
    other.answer(other.collect()[0])
    assert side.exchange.wait(0).done == 1
    side.exchange.end(0)
    side.host(0)
    assert side.begin([[2]], lane=1) == 0
    assert worker.collect() == [], "its only slot may still be written"
    assert side.stat(0, "quarantined") == 1
    worker.answer(late)
    side.exchange.wait(0)
    assert side.stat(0, "late") == 1 and side.stat(0, "quarantined") == 0
    worker.answer(worker.collect()[0])
    assert side.exchange.wait(0).done == 2
    side.check_cells(1)


def test_an_answer_counts_once(make_side) -> None:
    side = make_side(workers=1, slots=1)
    worker = side.workers[0]
    side.begin([[2]])
    [first] = worker.collect()
    worker.answer(first)
    worker.again(first.slot)
    assert side.exchange.wait(0).done == 1
    side.check_cells()
    side.exchange.end(0)
    side.begin([[3]])
    worker.again(first.slot)  # what lies there answers the shard before
    assert side.exchange.wait(0) == NOTHING
    worker.answer(worker.collect()[0])
    assert side.exchange.wait(0).done == 1
    side.check_cells()
    assert side.stat(0, "stray") == 2 and side.stat(0, "accepted") == 2


@pytest.mark.parametrize("wrong", ["call", "shard", "attempt", "f_inc", "magic", "crc"])
def test_an_answer_with_another_name_is_no_answer(make_side, wrong: str) -> None:
    side = make_side(workers=1)
    worker = side.workers[0]
    side.begin([[2]])
    [shard] = worker.collect()
    worker.answer(shard, **{wrong: 77})
    assert side.exchange.wait(0) == NOTHING
    assert side.stat(0, "stray") == 1
    worker.answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


@pytest.mark.parametrize("wrong", [{"num_cells": 5}, {"out_type": 1}, {"status": 9}])
def test_an_answer_of_another_size_is_a_refusal(make_side, wrong: dict[str, int]) -> None:
    side = make_side(workers=1)
    worker = side.workers[0]
    side.begin([[2]])
    worker.answer(worker.collect()[0], **wrong)
    assert side.exchange.wait(0).parked == 1
    assert side.stat(0, "refused_nonsense") == 1


def test_slots_that_do_not_exist_and_rings_gone_mad_do_no_harm(make_side) -> None:
    side = make_side(workers=1)
    worker = side.workers[0]
    side.begin([[2]])
    [shard] = worker.collect()
    for slot in (4, 1 << 31, 0xFFFFFFFF):
        worker.again(slot)
    worker.memory.answers.tail[0] += 1 << 30
    assert side.exchange.wait(0) == NOTHING
    assert side.stat(0, "stray") >= 3
    worker.answer(shard)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_a_call_may_end_before_its_answers_come(make_side) -> None:
    side = make_side(workers=1, slots=2)
    worker = side.workers[0]
    side.begin([[2]])
    [old] = worker.collect()
    side.exchange.end(0)
    side.begin([[3]])
    [new] = worker.collect()
    assert new.slot != old.slot
    worker.answer(old)
    assert side.exchange.wait(0) == NOTHING
    worker.answer(new)
    assert side.exchange.wait(0).done == 1
    side.check_cells()


def test_a_missed_deadline_wakes_the_wait_and_is_told_once(make_side) -> None:
    side = make_side(workers=1)
    side.exchange.set_deadline(0, 2_000)
    side.begin([[2]], lane=2)
    wake = side.exchange.wait(10_000_000)
    assert wake == Wake(0, 0, False, True)
    assert side.exchange.wait(0) == NOTHING
    [late] = side.exchange.overdue()
    [shard] = side.workers[0].collect()
    assert (late.worker, late.lane, late.shard) == (0, 2, int(shard.head["shard"][0]))
    assert late.age_us >= 2_000
    assert side.exchange.overdue(now_us=0) == []


def test_a_bell_of_another_thread_ends_the_wait(make_side) -> None:
    side = make_side(workers=1)
    side.begin([[2]])
    helper = threading.Thread(target=side.exchange.ring)
    helper.start()
    assert side.exchange.wait(10_000_000) == Wake(0, 0, True, False)
    helper.join()
    assert side.exchange.wait(0) == NOTHING


def test_only_the_lanes_that_are_asked_for_end_the_wait(make_side) -> None:
    side = make_side(workers=1)
    for lane in (0, 1):
        side.begin([[2]], lane=lane)
    worker = side.workers[0]
    for shard in worker.collect():
        worker.answer(shard)
    assert side.exchange.wait(0, lanes=0b10).done == 0b10
    assert side.exchange.wait(0).done == 0b11


def test_counts_tell_what_was_wanted_not_what_was_sent_again(make_side) -> None:
    side = make_side(workers=2)
    side.begin([[0, 2], [2, 3]], layer=2)
    side.exchange.drop_worker(0)
    side.exchange.wait(0)
    assert side.exchange.counts[2, :4].tolist() == [1, 0, 2, 1]
    assert side.exchange.counts.sum() == 4


def test_round_trips_are_learnt(make_side) -> None:
    side = make_side(workers=1)
    worker = side.workers[0]
    side.begin([[1]])
    worker.answer(worker.collect()[0], queue_us=30, compute_us=50)
    side.exchange.wait(0)
    learnt = side.exchange.stats[0]
    assert learnt["round_trip"] > 0 and learnt["queued"] == 30 and learnt["computed"] == 50
    assert learnt["round_trips"] == learnt["round_trip"]
