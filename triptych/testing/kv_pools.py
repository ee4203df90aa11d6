"""Pools with known bytes, and waiting for bytes to arrive."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from transport.kv.base import BlockRead
from transport.kv.region import Region

GENERATION = 1
CANARY = 0xA5


def fill_pool(region: Region, seed: int) -> None:
    """Random bytes, every block of GENERATION."""
    random = np.random.default_rng(seed)
    region.blocks[:] = random.integers(0, 256, region.blocks.shape, dtype=np.uint8)
    region.generations[:] = GENERATION


def whole_blocks(sources: Iterable[int], targets: Iterable[int], size: int) -> list[BlockRead]:
    """Reads of `size` bytes, whole blocks, in the order given."""
    return [
        BlockRead(int(source), GENERATION, int(target), 0, size)
        for source, target in zip(sources, targets, strict=True)
    ]


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Watches without sleeping, for things that last less than a sleep would."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"


def untouched(blocks: NDArray[np.uint8]) -> bool:
    return bool((blocks == CANARY).all())
