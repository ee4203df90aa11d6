"""The transport process of the nixl link: `python -m transport.kv.nixl_process`, for `nixl.py`.

Maps the pool from an inherited descriptor and speaks frames over an inherited socket:

    source says  {"metadata", "base"} | {"failed"}, then serves until the socket closes
    home   says  {"metadata", "base"} | {"failed"}
           hears {"peer": endpoint}          says {"path"} | {"gone"} | {"failed"}
           hears {"fetch": id} + READ table  says {"ended": id} and "stale", "gone" or "failed"

It ends with its parent: a thread waits for the socket's end and leaves at once, whatever NIXL does.
(PR_SET_PDEATHSIG would also fire at the end of the parent's *thread* that started us.)
"""

from __future__ import annotations

import argparse
import base64
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from transport.kv.base import KvLinkError, LinkUnusable, PeerGone, StaleBlock
from transport.kv.counters import Carrier, carrier_of, read_counters
from transport.kv.frames import FrameError, recv_frame, send_frame
from transport.kv.nixl_agent import PoolAgent
from transport.kv.reads import (
    MAX_READS,
    READ,
    ReadTable,
    lengths_of,
    merge_runs,
    positions,
)
from transport.kv.region import PAGE, PROBE_BYTES, Region, RegionShape, probe_pattern

Message = tuple[dict[str, Any], bytes]

IDLE_S = 0.005  # a source without readers looks this often whether one came
BUSY_S = 0.02  # after a reader's hint a source does nothing but serve
PROBE_REPEATS = 256  # times the probe page: 1 MiB stands out from a machine's other traffic
PROBE_ROUNDS = 5
_PATHS: Mapping[Carrier, str] = {"rdma": "nixl:rdma", "network": "nixl:tcp", "memory": "nixl:cma"}


class PeerReader:
    """Reads from one peer's pool into ours."""

    def __init__(self, agent: PoolAgent, region: Region, peer: Mapping[str, Any]) -> None:
        self._agent = agent
        self._region = region
        self._peer_shape = RegionShape(peer["block_bytes"], peer["num_blocks"])
        self._peer_base: int = peer["base"]
        self._name = agent.connect(base64.b64decode(peer["metadata"]))
        words = 8 * self._peer_shape.num_blocks
        self._scratch = np.zeros(max(words, PROBE_REPEATS * PROBE_BYTES), dtype=np.uint8)
        agent.add_memory(self._scratch)

    def probe(self) -> str:
        """Reads the probe page many times over; returns what carried it. Raises LinkUnusable."""
        size = PROBE_REPEATS * PROBE_BYTES
        remote = np.full(PROBE_REPEATS, self._peer_base + PAGE)
        local = self._scratch.ctypes.data + PROBE_BYTES * np.arange(PROBE_REPEATS)
        lengths = np.full(PROBE_REPEATS, PROBE_BYTES)
        wanted = np.tile(probe_pattern(self._peer_shape), PROBE_REPEATS)
        carriers: list[Carrier] = []
        while len(carriers) < PROBE_ROUNDS and "memory" not in carriers:
            self._scratch[:size] = 0
            before = read_counters()
            self._agent.read(self._name, lengths, remote, local)
            carriers.append(carrier_of(read_counters().since(before), size))
            if not np.array_equal(self._scratch[:size], wanted):
                raise LinkUnusable("the probe page arrived with other bytes")
        return _PATHS[carriers[-1]]

    def fetch(self, table: ReadTable) -> None:
        """Raises StaleBlock, PeerGone, KvLinkError."""
        lengths, starts, targets = merge_runs(
            lengths_of(table),
            positions(table, "source", self._peer_shape),
            positions(table, "target", self._region.shape),
        )
        if not len(lengths):
            return
        there = self._peer_base + self._peer_shape.blocks_offset
        here = self._agent.base + self._region.shape.blocks_offset
        self._agent.read(self._name, lengths, there + starts, here + targets)
        self._check_generations(table)

    def _check_generations(self, table: ReadTable) -> None:
        """Reads the span of generations that the blocks lie in, after every byte of them landed."""
        blocks = table["source"].astype(np.int64)
        first, count = int(blocks.min()), int(blocks.max() - blocks.min()) + 1
        there = self._peer_base + self._peer_shape.generations_offset + 8 * first
        here = self._scratch.ctypes.data
        self._agent.read(self._name, *(np.array([n]) for n in (8 * count, there, here)))
        generations = self._scratch[: 8 * count].view(np.uint64)
        stale = np.flatnonzero(generations[blocks - first] != table["generation"])
        if len(stale):
            raise StaleBlock(f"block {blocks[stale[0]]} was handed out again")


def main() -> NoReturn:
    """Never returns to the interpreter: its shutdown would run destructors of a live transport."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["source", "home"])
    for name in ("socket", "pool", "block-bytes", "num-blocks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    try:
        parent = socket.socket(fileno=arguments.socket)
        shape = RegionShape(arguments.block_bytes, arguments.num_blocks)
        _run(arguments.role, parent, Region(arguments.pool, shape, writable=True))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _run(role: str, parent: socket.socket, region: Region) -> None:
    inbox = _listen(parent)
    try:
        agent = PoolAgent(region)
    except (ImportError, KvLinkError) as error:
        send_frame(parent, {"failed": str(error)})
        return
    metadata = base64.b64encode(agent.metadata).decode()
    send_frame(parent, {"metadata": metadata, "base": agent.base})
    if role == "source":
        _serve(agent)
    else:
        _fetch_for(parent, inbox, agent, region)


def _serve(agent: PoolAgent) -> NoReturn:
    busy_until = 0.0
    while True:
        if agent.progress():
            busy_until = time.monotonic() + BUSY_S
        time.sleep(0 if time.monotonic() < busy_until else IDLE_S)


def _fetch_for(
    parent: socket.socket, inbox: queue.SimpleQueue[Message], agent: PoolAgent, region: Region
) -> NoReturn:
    head, _ = inbox.get()
    try:
        reader = PeerReader(agent, region, head["peer"])
        send_frame(parent, {"path": reader.probe()})
    except KvLinkError as error:
        send_frame(parent, _outcome(error))
    while True:
        head, blob = inbox.get()
        try:
            reader.fetch(np.frombuffer(blob, dtype=READ))
        except KvLinkError as error:
            send_frame(parent, {"ended": head["fetch"], **_outcome(error)})
        else:
            send_frame(parent, {"ended": head["fetch"]})


def _outcome(error: KvLinkError) -> dict[str, str]:
    match error:
        case StaleBlock():
            return {"stale": str(error)}
        case PeerGone():
            return {"gone": str(error)}
    return {"failed": str(error)}


def _listen(parent: socket.socket) -> queue.SimpleQueue[Message]:
    """Takes the parent's messages as they come, so that it never waits for us; ends with it."""
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def take() -> None:
        try:
            while True:
                inbox.put(recv_frame(parent, MAX_READS * READ.itemsize))
        except (OSError, FrameError):
            os._exit(0)

    threading.Thread(target=take, name="parent", daemon=True).start()
    return inbox


if __name__ == "__main__":
    main()
