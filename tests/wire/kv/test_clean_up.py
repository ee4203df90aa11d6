"""What a link opened is closed with it."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter

import psutil
import pytest

from transport.kv.base import KvLink, LinkUnusable
from transport.kv.region import Region, RegionShape
from triptych.testing.kv_pools import fill_pool, whole_blocks

SHAPE = RegionShape(block_bytes=4096, num_blocks=16)
WAIT_S = 20.0


def holdings() -> dict[str, object]:
    """Threads, descriptors (by what they lead to) and child processes of ours."""
    gc.collect()
    descriptors: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:  # the listing's own
            continue
    return {
        "threads": set(threading.enumerate()),
        "descriptors": descriptors,
        "processes": set(psutil.Process().children(recursive=True)),
    }


def use_once(link: KvLink) -> None:
    source, home = Region.create(SHAPE), Region.create(SHAPE)
    fill_pool(source, seed=1)
    served = link.serve(source)
    sessions = [link.connect(served.endpoint, home) for _ in range(2)]
    transfers = [
        session.start(whole_blocks([at], [at], SHAPE.block_bytes))
        for at in range(4)
        for session in sessions
    ]
    transfers[0].wait(WAIT_S)  # the rest may be queued, running or done when their session closes
    for session in sessions:
        session.close()
    served.close()
    source.close()
    home.close()


def test_closing_leaves_no_thread_descriptor_or_process(link: KvLink) -> None:
    before = holdings()

    use_once(link)

    assert holdings() == before


def test_a_failed_connect_leaves_nothing(link: KvLink) -> None:
    before = holdings()
    source, home = Region.create(SHAPE), Region.create(SHAPE)
    source.probe[0] ^= 1
    served = link.serve(source)

    with pytest.raises(LinkUnusable, match="probe page"):
        link.connect(served.endpoint, home)
    served.close()
    source.close()
    home.close()
    del source, home, served

    assert holdings() == before
