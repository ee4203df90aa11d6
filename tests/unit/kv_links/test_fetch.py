"""Fetching announced blocks: verified, retried along the ladder, and never half owned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest

from transport.kv.base import (
    BlockRead,
    DigestMismatch,
    KvLinkError,
    LinkUnusable,
    PeerGone,
    TransferTimeout,
    WriterNotQuiet,
)
from transport.kv.digest import digests
from transport.kv.region import Region, RegionShape
from transport.protos import worker_pb2 as pb
from triptych.kv.layout import KvLayout
from triptych.kv.ledger import TransferLedger
from triptych.kv.pool import BlockPool
from triptych.obs.metrics import WorkerMetrics, new_registry
from triptych.worker.fetch import Fetcher, ladder
from triptych.worker.peers import Peer

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=4, block_tokens=4, dtype="float32")
NUM_BLOCKS = 8


@dataclass
class MemoryTransfer:
    """Copies in `wait`, after doing to the bytes whatever a test wants."""

    copy: Callable[[], None]
    quiet: bool = True
    fenced: bool = False

    def wait(self, timeout_s: float) -> None:
        self.copy()

    def fence(self) -> bool:
        self.fenced = True
        return self.quiet


@dataclass
class MemoryLink:
    """A session between two regions of this process. `faults` are raised or applied in turn."""

    name: str
    source: Region
    target: Region
    faults: list[str | Exception] = field(default_factory=list)
    transfers: list[MemoryTransfer] = field(default_factory=list)
    quiet: bool = True
    refuses: Exception | None = None

    @property
    def path(self) -> str:
        return self.name

    def start(self, reads: Sequence[BlockRead]) -> MemoryTransfer:
        if self.refuses is not None:
            raise self.refuses
        fault = self.faults.pop(0) if self.faults else None

        def copy() -> None:
            if isinstance(fault, Exception):
                raise fault
            for read in reads:
                span = slice(read.offset, read.offset + read.length)
                self.target.blocks[read.target, span] = self.source.blocks[read.source, span]
            if fault == "flip a bit":
                self.target.blocks[reads[0].target, reads[0].offset] ^= 1

        transfer = MemoryTransfer(copy, self.quiet)
        self.transfers.append(transfer)
        return transfer

    def close(self) -> None:
        pass


class MemoryLinks:
    """What a peer's PeerLinks do."""

    def __init__(self, *links: MemoryLink) -> None:
        self._links = {link.name: link for link in links}

    def usable(self) -> list[str]:
        return list(self._links)

    def session(self, name: str) -> MemoryLink:
        return self._links[name]

    def reasons(self) -> dict[str, str]:
        return {"shm": "another host"}


class Scene:
    """A source with random blocks, a home with four blocks reserved, and two links between them."""

    def __init__(self) -> None:
        shape = RegionShape(LAYOUT.block_bytes, NUM_BLOCKS)
        self.source, self.home = Region.create(shape), Region.create(shape)
        self.source.blocks[:] = np.random.default_rng(0).integers(0, 256, self.source.blocks.shape)
        self.pool = BlockPool(NUM_BLOCKS, generations=self.home.generations)
        self.targets = self.pool.allocate(4) or []
        self.first = MemoryLink("shm", self.source, self.home)
        self.second = MemoryLink("tcp", self.source, self.home)
        self.rungs: list[str] = []
        metrics = WorkerMetrics(new_registry())
        self.fetcher = Fetcher(self.home, LAYOUT, 8, TransferLedger(self.pool), metrics)

    def fetch(self, *links: MemoryLink) -> Any:
        blocks = [7, 2, 5, 0]
        offset, length = LAYOUT.layer_span(0, 2)
        ready = pb.BlocksReady(
            blocks=blocks,
            generations=[0] * 4,
            first_layer=0,
            end_layer=2,
            digests=digests(self.source, blocks, offset, length, "full"),
        )
        peer = cast(Peer, _Peer("prefill-0", MemoryLinks(*links)))
        return asyncio.run(
            self.fetcher.fetch(peer, ready, self.targets, 5.0, lambda rung, _: self.note(rung))
        )

    def note(self, rung: str) -> None:
        self.rungs.append(rung)

    def arrived(self) -> bool:
        return bool((self.home.blocks[self.targets] == self.source.blocks[[7, 2, 5, 0]]).all())


@dataclass
class _Peer:
    worker_id: str
    links: MemoryLinks


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_blocks_arrive_and_only_the_request_holds_them_afterwards(scene: Scene) -> None:
    fetched = scene.fetch(scene.first, scene.second)
    assert fetched.path == "shm" and fetched.num_bytes == 4 * LAYOUT.block_bytes
    assert scene.arrived() and scene.rungs == []
    assert scene.pool.counts()["transfer"] == 0 and scene.pool.counts()["request"] == 4


@pytest.mark.parametrize("fault", ["flip a bit", TransferTimeout("late"), PeerGone("reset")])
def test_one_failure_is_tried_again_on_the_same_path(scene: Scene, fault: str | Exception) -> None:
    scene.first.faults = [fault]
    assert scene.fetch(scene.first, scene.second).path == "shm"
    assert scene.arrived() and scene.rungs == ["same-path"]
    assert scene.first.transfers[0].fenced and not scene.first.transfers[1].fenced


def test_a_path_that_fails_twice_is_left_for_the_next(scene: Scene) -> None:
    scene.first.faults = ["flip a bit", TransferTimeout("late")]
    assert scene.fetch(scene.first, scene.second).path == "tcp"
    assert scene.arrived() and scene.rungs == ["same-path", "next-path"]


def test_damaged_bytes_are_never_taken(scene: Scene) -> None:
    scene.first.faults = ["flip a bit"] * 9
    with pytest.raises(DigestMismatch):
        scene.fetch(scene.first)
    assert scene.pool.counts()["transfer"] == 0, "the failed copies were fenced and gave up"
    assert all(transfer.fenced for transfer in scene.first.transfers)


def test_blocks_whose_writer_is_not_quiet_are_not_written_again(scene: Scene) -> None:
    scene.first.faults, scene.first.quiet = [TransferTimeout("late")], False
    with pytest.raises(WriterNotQuiet):
        scene.fetch(scene.first, scene.second)
    assert not scene.second.transfers and scene.pool.counts()["quarantine"] == 4
    scene.pool.release(scene.targets)
    assert scene.pool.available == 4, "the request may go; the blocks stay away from everybody"


def test_a_path_that_cannot_start_gives_its_hold_back(scene: Scene) -> None:
    scene.first.refuses = OSError("too many open files")
    with pytest.raises(OSError):
        scene.fetch(scene.first)
    assert scene.pool.counts()["transfer"] == 0


def test_an_unusable_path_is_not_tried_twice(scene: Scene) -> None:
    scene.first.faults = [LinkUnusable("another host")]
    assert scene.fetch(scene.first, scene.second).path == "tcp"
    assert scene.rungs == ["next-path"]


def test_without_a_path_the_reasons_are_told(scene: Scene) -> None:
    with pytest.raises(KvLinkError, match="another host"):
        scene.fetch()


def test_the_ladder_tries_the_best_path_twice_and_the_others_once() -> None:
    assert list(ladder(["shm", "tcp"])) == [
        ("first", "shm"),
        ("same-path", "shm"),
        ("next-path", "tcp"),
    ]
    assert list(ladder([])) == []
