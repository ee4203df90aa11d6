"""What a pool tells of its prefix cache: changes by number, and all there is."""

from __future__ import annotations

import random
import threading

from hypothesis import given
from hypothesis import strategies as st

from triptych.kv.journal import KEY_BYTES, CacheJournal
from triptych.kv.pool import BlockPool
from triptych.testing.kv_workers import compute, hashes_of


def keys_in(packed: bytes) -> set[bytes]:
    return {packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)}


def key(number: int) -> bytes:
    return bytes([number]) * 16


@given(
    changes=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60),
    cuts=st.lists(st.integers(1, 20)),
)
def test_changes_in_pieces_make_the_same_cache_as_one_by_one(
    changes: list[tuple[int, bool]], cuts: list[int]
) -> None:
    journal, cache = CacheJournal(100), set()
    for number, removed in changes:
        (journal.removed if removed else journal.stored)(key(number))
        (cache.discard if removed else cache.add)(key(number)[:KEY_BYTES])
    followed: set[bytes] = set()
    position = 0
    for limit in [*cuts, 100]:
        piece = journal.since(position, limit)
        assert piece is not None and not keys_in(piece.stored) & keys_in(piece.removed)
        followed = (followed | keys_in(piece.stored)) - keys_in(piece.removed)
        position = piece.end
    assert position == len(changes) and followed == cache


def test_a_journal_is_bounded_and_says_what_it_no_longer_knows() -> None:
    journal = CacheJournal(1)
    for number in range(journal.capacity + 10):
        journal.stored(key(number % 256))
    assert journal.since(9, 1) is None and journal.since(journal.end + 1, 1) is None
    known = journal.since(10, journal.capacity)
    assert known is not None and known.end == journal.end
    assert len(journal._hashes) == journal.capacity


def test_a_snapshot_and_the_changes_behind_it_are_the_present_cache() -> None:
    pool = BlockPool(16)
    for prompt in range(20):
        compute(pool, hashes_of([prompt] * 20))
    end, keys = pool.snapshot()
    for prompt in range(20, 25):
        compute(pool, hashes_of([prompt] * 20))
    changes = pool.changes(end, 1000)
    assert changes is not None
    now_end, now = pool.snapshot()
    assert now_end == changes.end
    assert keys_in(now) == (keys_in(keys) - keys_in(changes.removed)) | keys_in(changes.stored)


def test_a_reader_beside_a_busy_engine_misses_nothing() -> None:
    pool, over = BlockPool(64), threading.Event()

    def work() -> None:
        draw = random.Random(2)
        for _ in range(2000):
            compute(pool, hashes_of([draw.randrange(50)] * 4 * draw.randrange(1, 9)))
        over.set()

    engine = threading.Thread(target=work)
    engine.start()
    position, keys = pool.snapshot()
    followed = keys_in(keys)
    while True:
        last = over.is_set()
        changes = pool.changes(position, 100)
        if changes is None:
            position, keys = pool.snapshot()
            followed = keys_in(keys)
            continue
        followed = (followed | keys_in(changes.stored)) - keys_in(changes.removed)
        if last and changes.end == position:
            break
        position = changes.end
    engine.join()
    assert followed == keys_in(pool.snapshot()[1])
