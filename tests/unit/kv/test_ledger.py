"""The ledger: a block that a transfer may touch is nobody else's."""

from __future__ import annotations

from triptych.kv.ledger import TransferLedger
from triptych.kv.pool import BlockPool, Holder


def landed(pool: BlockPool, ledger: TransferLedger, count: int = 2):  # type: ignore[no-untyped-def]
    blocks = pool.allocate(count)
    assert blocks is not None
    return blocks, ledger.begin(blocks)


def test_a_committed_transfer_leaves_the_blocks_to_their_request() -> None:
    pool = BlockPool(4)
    ledger = TransferLedger(pool)
    blocks, lease = landed(pool, ledger)
    lease.commit()
    assert pool.counts()["transfer"] == 0 and pool.counts()["request"] == 2
    pool.release(blocks)
    assert pool.counts()["free"] == 4


def test_an_abort_with_an_exact_fence_frees_the_blocks_with_the_request() -> None:
    pool = BlockPool(4)
    ledger = TransferLedger(pool)
    blocks, lease = landed(pool, ledger)
    pool.release(blocks)
    assert pool.available == 2, "the request is gone, the transfer is not"
    assert lease.abort(lambda: True)
    assert pool.available == 4


def test_blocks_of_a_writer_that_is_not_proven_quiet_are_quarantined_until_it_is() -> None:
    pool = BlockPool(4)
    ledger = TransferLedger(pool)
    blocks, lease = landed(pool, ledger)
    pool.release(blocks)
    quiet = False
    assert not lease.abort(lambda: quiet)
    assert pool.counts()["quarantine"] == 2 and ledger.sweep() == 2
    assert pool.available == 2
    quiet = True
    assert ledger.sweep() == 0
    assert pool.available == 4


def test_a_transfer_ends_exactly_once() -> None:
    pool = BlockPool(4)
    ledger = TransferLedger(pool)
    _, lease = landed(pool, ledger)
    lease.commit()
    lease.abort(lambda: True)
    lease.commit()
    assert pool.counts()[Holder.TRANSFER] == 0


def test_the_oldest_transfer_is_the_one_that_is_reported() -> None:
    pool = BlockPool(4)
    ledger = TransferLedger(pool)
    assert ledger.oldest_age_s() == 0.0
    _, first = landed(pool, ledger)
    _, second = landed(pool, ledger)
    first.commit()
    assert ledger.oldest_age_s() > 0.0
    second.commit()
    assert ledger.oldest_age_s() == 0.0
