"""Which rows are computed, and who waits."""

from __future__ import annotations

from triptych.engine.scheduler import Scheduler
from triptych.engine.sequence import Sequence
from triptych.kv.pool import BlockPool


def sequence_of(length: int, first: int = 0, leader: Sequence | None = None) -> Sequence:
    tokens = list(range(first, first + length))
    return Sequence(request_id=str(first), tokens=tokens, root=b"", block_tokens=4, leader=leader)


def scheduler_of(pool: BlockPool, chunk_tokens: int = 16, max_running: int = 8) -> Scheduler:
    return Scheduler(pool, block_tokens=4, chunk_tokens=chunk_tokens, max_running=max_running)


def spans(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """One step's rows; they count as computed."""
    jobs = scheduler.next_batch()
    for job in jobs:
        scheduler.advance(job)
    return [(job.sequence.request_id, job.start, job.end) for job in jobs]


def test_a_long_prompt_is_computed_in_chunks_beside_others() -> None:
    scheduler = scheduler_of(BlockPool(32))
    scheduler.add(sequence_of(10, 0))
    scheduler.add(sequence_of(20, 100))
    assert spans(scheduler) == [("0", 0, 10), ("100", 0, 6)]
    assert spans(scheduler) == [("100", 6, 20)]
    assert spans(scheduler) == []


def test_a_sequence_that_got_a_token_is_wanted_again_and_comes_first() -> None:
    scheduler = scheduler_of(BlockPool(32))
    first = sequence_of(3, 0)
    scheduler.add(first)
    spans(scheduler)
    first.append(77)
    scheduler.add(sequence_of(30, 100))
    assert spans(scheduler) == [("0", 3, 4), ("100", 0, 15)]


def test_nobody_overtakes_a_request_that_waits_for_blocks() -> None:
    pool = BlockPool(4)
    scheduler = scheduler_of(pool)
    running = sequence_of(12, 0)
    scheduler.add(running)
    spans(scheduler)
    scheduler.add(sequence_of(8, 100))
    scheduler.add(sequence_of(4, 200))
    assert spans(scheduler) == []
    scheduler.remove(running)
    assert [name for name, _, _ in spans(scheduler)] == ["100", "200"]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    pool = BlockPool(4)
    scheduler = scheduler_of(pool)
    old, young = sequence_of(8, 0), sequence_of(8, 100)
    scheduler.add(old)
    scheduler.add(young)
    spans(scheduler)
    old.append(50)
    young.append(60)
    assert spans(scheduler) == [("0", 8, 9)]
    assert young.num_computed == 0 and not young.blocks
    scheduler.remove(old)
    assert spans(scheduler) == [("100", 4, 9)], "the head of its prefix was still cached"


def test_no_more_than_max_running_hold_blocks() -> None:
    scheduler = scheduler_of(BlockPool(32), max_running=2)
    for first in (0, 100, 200):
        scheduler.add(sequence_of(4, first))
    assert len(spans(scheduler)) == 2
    assert scheduler.num_waiting == 1


def test_siblings_wait_for_their_leader_while_others_pass() -> None:
    scheduler = scheduler_of(BlockPool(32), chunk_tokens=6)
    leader = sequence_of(8, 0)
    scheduler.add(leader)
    scheduler.add(sequence_of(8, 0, leader))
    assert spans(scheduler) == [("0", 0, 6)]
    assert scheduler.num_waiting == 1
    scheduler.add(sequence_of(2, 500))
    assert spans(scheduler) == [("0", 6, 8), ("500", 0, 2)]
    leader.prompt_done_at = 1.0
    assert spans(scheduler) == [("0", 4, 8)], "the sibling finds the first block in the cache"


def test_sequences_that_only_need_room_stand_in_the_same_queue() -> None:
    pool = BlockPool(4)
    scheduler = scheduler_of(pool)
    running, ticket, late = sequence_of(12, 0), sequence_of(8, 100), sequence_of(4, 200)
    got_room: list[str] = []
    ticket.on_room = lambda: got_room.append("100")
    for sequence in (running, ticket, late):
        scheduler.add(sequence)
    assert spans(scheduler) == [("0", 0, 12)] and not got_room
    scheduler.remove(running)
    assert spans(scheduler) == [("200", 0, 4)] and got_room == ["100"]
    assert len(ticket.blocks) == 2 and ticket.on_room is None
    scheduler.add(ticket)
    assert spans(scheduler) == [("100", 0, 8)], "its KV did not come: it is computed here"


def test_sequences_whose_kv_is_on_its_way_count_as_running() -> None:
    scheduler = scheduler_of(BlockPool(32), max_running=1)
    ticket = sequence_of(4, 0)
    ticket.on_room = lambda: None
    scheduler.add(ticket)
    scheduler.add(sequence_of(4, 100))
    assert spans(scheduler) == []
    scheduler.remove(ticket)
    assert spans(scheduler) == [("100", 0, 4)]


def test_a_restarted_sequence_gives_its_blocks_back_and_queues_anew() -> None:
    pool = BlockPool(8)
    scheduler = scheduler_of(pool)
    ticket = sequence_of(8, 0)
    ticket.on_room = lambda: None
    scheduler.add(ticket)
    scheduler.next_batch()
    assert pool.available == 6
    scheduler.restart(ticket)
    assert pool.available == 8
    assert spans(scheduler) == [("0", 0, 8)]


def test_removing_twice_or_a_stranger_gives_nothing_back_twice() -> None:
    pool = BlockPool(8)
    scheduler = scheduler_of(pool)
    sequence = sequence_of(8)
    scheduler.remove(sequence)
    scheduler.add(sequence)
    spans(scheduler)
    scheduler.remove(sequence)
    scheduler.remove(sequence)
    assert pool.available == 8


def test_the_queue_is_reported_without_what_the_cache_holds() -> None:
    scheduler = scheduler_of(BlockPool(32))
    first = sequence_of(9, 0)
    scheduler.add(first)
    spans(scheduler)
    scheduler.remove(first)  # two full blocks of it stay in the cache
    scheduler.add(sequence_of(12, 0))
    assert scheduler.queued_tokens == 12 - 8
    assert scheduler.queued_pairs == 4 * (8 + 12) / 2


def going_on(length: int, first: int, resumed: int) -> Sequence:
    tokens = list(range(first, first + length))
    head, tail = tokens[: length - resumed], tuple(tokens[length - resumed :])
    return Sequence(str(first), head, root=b"", block_tokens=4, resumed=tail)


def test_streams_that_go_on_come_before_requests_that_begin() -> None:
    pool = BlockPool(4)
    scheduler = scheduler_of(pool)
    running = sequence_of(16, 0)
    scheduler.add(running)
    spans(scheduler)
    for sequence in (
        sequence_of(4, 100),
        going_on(4, 200, resumed=2),
        sequence_of(4, 300),
        going_on(4, 400, resumed=2),
    ):
        scheduler.add(sequence)
    scheduler.remove(running)
    assert [name for name, _, _ in spans(scheduler)] == ["200", "400", "100", "300"]


def test_while_streams_catch_up_steps_are_short_and_other_streams_go_on_in_each() -> None:
    scheduler = scheduler_of(BlockPool(32))
    scheduler.patient_rows = lambda: 6
    stream = sequence_of(4, 0)
    scheduler.add(stream)
    spans(scheduler)
    late = going_on(9, 100, resumed=3)
    scheduler.add(late)
    for step, rows in enumerate([(0, 6), (6, 9)]):
        stream.append(step)
        assert spans(scheduler) == [("0", 4 + step, 5 + step), ("100", *rows)]
    late.prompt_done_at = 1.0
    scheduler.add(sequence_of(12, 200))
    assert spans(scheduler) == [("200", 0, 12)], "nobody catches up any more"


def test_beside_streams_prompts_get_as_many_rows_as_those_leave_and_alone_whole_chunks() -> None:
    scheduler = scheduler_of(BlockPool(64))
    told = []

    def rows_beside(streams: int, positions: float, at: int) -> int:
        told.append((streams, positions, at))
        return 5

    scheduler.rows_beside = rows_beside
    stream = sequence_of(4, 0)
    scheduler.add(stream)
    assert spans(scheduler) == [("0", 0, 4)], "a prompt without streams"
    late = sequence_of(12, 100)
    scheduler.add(late)
    for step, rows in enumerate([(0, 5), (5, 10), (10, 12)]):
        stream.append(step)
        assert spans(scheduler) == [("0", 4 + step, 5 + step), ("100", *rows)]
    for sequence in (stream, late):
        sequence.append(9)
    assert spans(scheduler) == [("0", 7, 8), ("100", 12, 13)]
    assert told == [(1, 4, 0), (1, 5, 5), (1, 6, 10)], "asked only where there is a prompt"


def test_siblings_begin_when_their_prompt_is_computed_whatever_their_leader_draws() -> None:
    scheduler = scheduler_of(BlockPool(32), chunk_tokens=10)
    leader = going_on(16, 0, resumed=8)
    sibling = Sequence("sibling", list(range(8)), b"", 4, leader=leader, resumed=(50, 51, 52))
    scheduler.add(leader)
    scheduler.add(sibling)
    assert spans(scheduler) == [("0", 0, 10)]
    assert spans(scheduler) == [("0", 10, 16), ("sibling", 8, 11)]
