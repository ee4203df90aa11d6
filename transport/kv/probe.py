"""Proves KV links on this machine: what works, what carries the bytes, how fast next to memcpy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transport.kv.base import BlockRead, KvLinkError, KvSession
from transport.kv.counters import ByteCounters, Carrier, carrier_of, read_counters
from transport.kv.digest import check_digests, digest_of
from transport.kv.links import make_links
from transport.kv.owner import GENERATION, PoolOwner
from transport.kv.paths import link_of, takes
from transport.kv.region import Region, RegionShape

BLOCK_BYTES = 1 << 20
ROUNDS = 5
ROUND_S = 30.0
_CARRIERS: Mapping[str, Carrier] = {
    "shm": "memory",
    "tcp": "network",
    "nixl:cma": "memory",
    "nixl:tcp": "network",
    "nixl:rdma": "rdma",
}


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What became of one link that was asked for."""

    link: str  # as asked for, e.g. "shm" or "nixl:rdma"
    ok: bool
    path: str  # proven; "" when no byte moved
    gb_s: float  # median of the rounds, 10^9 bytes
    memcpy_gb_s: float  # of the same size, between the same rounds
    reason: str  # why it is not ok; "" when it is


@dataclass(frozen=True, slots=True)
class _Round:
    seconds: float
    memcpy_seconds: float
    moved: ByteCounters


def probe_links(names: Sequence[str], *, mib: int = 64, run_dir: Path) -> list[LinkReport]:
    """Moves `mib` MiB a few times over each link, from another process on this machine.

    A name may ask for one path of a link ("nixl:rdma"); another path is then not ok. Never raises
    for a link that does not work. `run_dir` must exist; it holds sockets for a moment.
    """
    return [_probe_link(name, RegionShape(BLOCK_BYTES, mib), run_dir) for name in names]


def _probe_link(name: str, shape: RegionShape, run_dir: Path) -> LinkReport:
    link_name = link_of(name)
    try:
        [link] = make_links([link_name], run_dir)
        with (
            closing(Region.create(shape)) as region,
            PoolOwner(link_name, shape, run_dir) as owner,
            closing(link.connect(owner.endpoint, region)) as session,
        ):
            wanted = [digest_of(owner.block(index)) for index in range(shape.num_blocks)]
            rounds = [_run_round(session, region, wanted) for _ in range(ROUNDS)]
    except (KvLinkError, OSError, ValueError) as error:
        return LinkReport(name, False, "", 0.0, 0.0, str(error))
    return _report(name, session.path, shape.block_bytes * shape.num_blocks, rounds)


def _run_round(session: KvSession, region: Region, wanted: Sequence[int]) -> _Round:
    """Raises KvLinkError when the transfer fails or brings other bytes."""
    blocks = range(region.shape.num_blocks)
    reads = [BlockRead(at, GENERATION, at, 0, region.shape.block_bytes) for at in blocks]
    region.blocks[:] = 0
    before, began = read_counters(), time.perf_counter()
    transfer = session.start(reads)
    try:
        transfer.wait(ROUND_S)
    finally:
        transfer.fence()
    seconds, moved = time.perf_counter() - began, read_counters().since(before)
    check_digests(region, blocks, 0, region.shape.block_bytes, wanted)
    copy = np.zeros_like(region.blocks)
    began = time.perf_counter()
    np.copyto(copy, region.blocks)
    return _Round(seconds, time.perf_counter() - began, moved)


def _report(name: str, path: str, size: int, rounds: Sequence[_Round]) -> LinkReport:
    """Others' traffic only adds to the counters: the quietest round is the one to believe."""
    network = min(item.moved.network for item in rounds)
    rdma = min(item.moved.rdma for item in rounds)
    carrier = carrier_of(ByteCounters(network, rdma), size)
    reason = ""
    if not takes(path, name):
        reason = f"asked for {name}, but the bytes take {path}"
    elif carrier != _CARRIERS[path]:
        reason = f"the path says {path}, but the byte counters say {carrier}"
    return LinkReport(
        link=name,
        ok=not reason,
        path=path,
        gb_s=size / 1e9 / statistics.median(item.seconds for item in rounds),
        memcpy_gb_s=size / 1e9 / statistics.median(item.memcpy_seconds for item in rounds),
        reason=reason,
    )
