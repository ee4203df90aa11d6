"""Copies on threads: waiting, fencing, closing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from transport.kv.base import KvLinkError, TransferTimeout
from transport.kv.copying import CopyThreads, Interrupt

WAIT_S = 10.0


@pytest.fixture
def threads() -> Iterator[CopyThreads]:
    with closing(CopyThreads("test-copy", 1)) as threads:
        yield threads


class HeldCopy:
    """A copy that goes on until it is told to stop."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.stopped = threading.Event()

    def __call__(self, interrupt: Interrupt) -> None:
        with interrupt.aborting(self.stopped.set):
            self.began.set()
            self.stopped.wait(WAIT_S)
        interrupt.check()


def test_a_fence_waits_until_the_copy_has_left(threads: CopyThreads) -> None:
    copy = HeldCopy()
    transfer = threads.start(copy)
    assert copy.began.wait(WAIT_S)

    assert transfer.fence()

    assert copy.stopped.is_set()
    with pytest.raises(KvLinkError, match="fenced"):
        transfer.wait(WAIT_S)


def test_a_copy_fenced_in_the_queue_never_begins(threads: CopyThreads) -> None:
    first, second = HeldCopy(), HeldCopy()
    running, queued = threads.start(first), threads.start(second)

    assert queued.fence()
    assert running.fence()
    threads.close()

    assert not second.began.is_set()
    with pytest.raises(KvLinkError, match="before it began"):
        queued.wait(WAIT_S)


def test_a_wait_ends_in_time(threads: CopyThreads) -> None:
    transfer = threads.start(HeldCopy())

    with pytest.raises(TransferTimeout):
        transfer.wait(0.01)

    assert transfer.fence()


def test_what_goes_wrong_in_a_copy_is_raised_where_it_is_waited_for(threads: CopyThreads) -> None:
    def broken(_: Interrupt) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        threads.start(broken).wait(WAIT_S)


def test_closing_ends_what_runs_and_what_waits(threads: CopyThreads) -> None:
    transfers = [threads.start(HeldCopy()) for _ in range(3)]

    threads.close()

    for transfer in [*transfers, threads.start(HeldCopy())]:
        with pytest.raises(KvLinkError):
            transfer.wait(0)
        assert transfer.fence()


def test_an_abort_does_not_reach_what_was_given_back() -> None:
    interrupt = Interrupt()
    aborted = threading.Event()
    with interrupt.aborting(aborted.set):
        pass

    interrupt.set()

    assert not aborted.is_set()
    with pytest.raises(KvLinkError), interrupt.aborting(aborted.set):
        pytest.fail("a copy that was stopped must not go on")
