"""Sources that are killed, stopped or replaced. They run in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from transport.kv.base import KvLink, KvLinkError, KvSession, PeerGone, TransferTimeout
from transport.kv.owner import PoolOwner
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import CANARY, untouched, wait_until, whole_blocks

SMALL = RegionShape(block_bytes=4096, num_blocks=8)
LARGE = RegionShape(block_bytes=1 << 20, num_blocks=96)
WAIT_S = 20.0  # far more than any of this takes; a test that needs it fails

MakePool = Callable[[RegionShape], Region]
MakeOwner = Callable[..., PoolOwner]
Connect = Callable[[str, Region], KvSession]


def everything(shape: RegionShape) -> range:
    return range(shape.num_blocks)


def stop(owner: PoolOwner) -> None:
    """Returns when the owner and its helpers run no further instruction."""
    processes = [psutil.Process(owner.pid), *psutil.Process(owner.pid).children(recursive=True)]
    owner.signal(signal.SIGSTOP)
    wait_until(lambda: all(item.status() == psutil.STATUS_STOPPED for item in processes))


def connect_again(owner: PoolOwner, connect: Connect, home: Region) -> KvSession:
    """As a home does: UCX may abort the transport process of a source that was stopped, at any
    moment after it went on; another one takes over at another endpoint.
    """
    for _ in range(3):
        owner.refresh()
        with suppress(PeerGone):
            return connect(owner.endpoint, home)
    pytest.fail("the source did not come back")


def test_a_source_killed_before_a_fetch_is_gone(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    owner, home = make_owner(SMALL), make_pool(SMALL)
    session = connect(owner.endpoint, home)

    owner.kill()
    transfer = session.start(whole_blocks([0], [0], SMALL.block_bytes))

    with pytest.raises(PeerGone):
        transfer.wait(WAIT_S)
    assert transfer.fence()
    assert not session.alive


def test_nobody_connects_to_a_dead_source(
    link: KvLink, make_owner: MakeOwner, make_pool: MakePool
) -> None:
    owner, home = make_owner(SMALL), make_pool(SMALL)

    owner.kill()

    with pytest.raises(KvLinkError):
        link.connect(owner.endpoint, home)


def test_a_source_killed_during_a_fetch_leaves_all_or_an_error(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    owner, home = make_owner(LARGE), make_pool(LARGE)
    other, beside = make_owner(SMALL, seed=9), make_pool(SMALL)
    session = connect(owner.endpoint, home)
    neighbour = connect(other.endpoint, beside)

    transfer = session.start(whole_blocks(everything(LARGE), everything(LARGE), LARGE.block_bytes))
    wait_until(lambda: not untouched(home.blocks[0, :64]))
    owner.kill()

    try:
        transfer.wait(WAIT_S)
    except PeerGone:
        assert transfer.fence()
    else:  # shared memory outlives its owner
        assert all(np.array_equal(home.blocks[at], owner.block(at)) for at in everything(LARGE))
    neighbour.start(whole_blocks([3], [4], SMALL.block_bytes)).wait(WAIT_S)
    assert np.array_equal(beside.blocks[4], other.block(3))


def test_a_restarted_source_is_reached_without_restarting_the_home(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    first, home = make_owner(SMALL, seed=1), make_pool(SMALL)
    old = connect(first.endpoint, home)
    first.kill()

    second = make_owner(SMALL, seed=2)
    new = connect(second.endpoint, home)
    new.start(whole_blocks([6], [0], SMALL.block_bytes)).wait(WAIT_S)

    assert np.array_equal(home.blocks[0], second.block(6))
    with pytest.raises(PeerGone):
        old.start(whole_blocks([6], [1], SMALL.block_bytes)).wait(WAIT_S)
    assert untouched(home.blocks[1:])


def test_a_stopped_source_costs_a_timeout_at_most(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    owner, home = make_owner(SMALL), make_pool(SMALL)
    session = connect(owner.endpoint, home)

    stop(owner)
    transfer = session.start(whole_blocks([2], [5], SMALL.block_bytes))
    try:
        transfer.wait(0.5)
    except TransferTimeout:
        assert transfer.fence()
        home.blocks[:] = CANARY
        with pytest.raises(KvLinkError):
            transfer.wait(WAIT_S)
    else:  # read from memory, without the source's help
        assert np.array_equal(home.blocks[5], owner.block(2))
        home.blocks[:] = CANARY
    owner.signal(signal.SIGCONT)

    fresh = connect_again(owner, connect, home)
    fresh.start(whole_blocks([3], [6], SMALL.block_bytes)).wait(WAIT_S)
    assert np.array_equal(home.blocks[6], owner.block(3))
    assert untouched(home.blocks[:6]) and untouched(home.blocks[7:])


def test_a_fenced_fetch_lands_no_byte_later(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    owner, home = make_owner(LARGE), make_pool(LARGE)
    session = connect(owner.endpoint, home)

    transfer = session.start(whole_blocks(everything(LARGE), everything(LARGE), LARGE.block_bytes))
    wait_until(lambda: not untouched(home.blocks[0, :64]))
    stop(owner)
    assert transfer.fence()
    home.blocks[:] = CANARY
    owner.signal(signal.SIGCONT)

    # A whole exchange with the source after it went on: what it still had to send is out by then.
    fresh = connect_again(owner, connect, home)
    fresh.start(whole_blocks([1], [0], LARGE.block_bytes)).wait(WAIT_S)
    assert np.array_equal(home.blocks[0], owner.block(1))
    assert untouched(home.blocks[1:])


@pytest.mark.parametrize("link_kind", ["tcp", "nixl-over-tcp"], indirect=True)
def test_a_fence_ends_the_wait_of_another_thread(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    """On the links that need their source's help; the others complete without it."""
    owner, home = make_owner(SMALL), make_pool(SMALL)
    session = connect(owner.endpoint, home)
    stop(owner)
    transfers = [session.start(whole_blocks([at], [at], SMALL.block_bytes)) for at in range(6)]

    with ThreadPoolExecutor(len(transfers)) as threads:
        waits = [threads.submit(transfer.wait, WAIT_S) for transfer in transfers]
        assert all(transfer.fence() for transfer in reversed(transfers))
        errors = [wait.exception(WAIT_S) for wait in waits]

    assert all(isinstance(error, KvLinkError) for error in errors)
    assert untouched(home.blocks)
    owner.signal(signal.SIGCONT)


def test_a_block_that_its_owner_handed_out_again_is_refused(
    make_owner: MakeOwner, make_pool: MakePool, connect: Connect
) -> None:
    owner, home = make_owner(SMALL), make_pool(SMALL)
    session = connect(owner.endpoint, home)

    owner.hand_out(4)

    with pytest.raises(KvLinkError, match="block 4 was handed out again"):
        session.start(whole_blocks([4], [0], SMALL.block_bytes)).wait(WAIT_S)
    session.start(whole_blocks([5], [1], SMALL.block_bytes)).wait(WAIT_S)
    assert np.array_equal(home.blocks[1], owner.block(5))


def test_a_source_that_ends_takes_its_helpers_and_files_along(
    make_owner: MakeOwner, run_dir: Path
) -> None:
    files = set(run_dir.iterdir())
    owner = make_owner(SMALL)
    helpers = psutil.Process(owner.pid).children(recursive=True)

    owner.close()

    gone, left = psutil.wait_procs(helpers, timeout=WAIT_S)
    assert not left
    assert set(run_dir.iterdir()) <= files


def test_helpers_end_when_their_owner_alone_is_killed(
    make_owner: MakeOwner, make_pool: MakePool
) -> None:
    owner = make_owner(SMALL)
    helpers = psutil.Process(owner.pid).children(recursive=True)

    os.kill(owner.pid, signal.SIGKILL)

    gone, left = psutil.wait_procs(helpers, timeout=WAIT_S)
    assert not left
