"""Workers and prompts as a router's index sees them, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transport.registry import WorkerView
from triptych.kv.hashing import extend_hashes, root_hash
from triptych.kv.pool import BlockPool

BLOCK_TOKENS = 4
IDENTITY = "layout"


@dataclass(slots=True)
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def worker_view(
    worker_id: str, *, role: str = "decode", num_blocks: int = 100, epoch: int = 1
) -> WorkerView:
    return WorkerView(
        worker_id=worker_id,
        epoch=epoch,
        role=role,
        address="",
        model="tiny",
        max_model_len=1000,
        block_tokens=BLOCK_TOKENS,
        num_blocks=num_blocks,
        metrics_address="",
        kv_identity=IDENTITY,
    )


def hashes_of(tokens: Sequence[int], salt: str = "") -> list[bytes]:
    """Of the full blocks of a prompt, as these workers make them."""
    hashes: list[bytes] = []
    root = root_hash(model="", weights="", layout=IDENTITY, salt=salt)
    extend_hashes(hashes, tokens, BLOCK_TOKENS, root)
    return hashes


def compute(pool: BlockPool, hashes: Sequence[bytes]) -> int:
    """Does what a finished request does to a pool; how many blocks it had not to compute."""
    reservation = pool.reserve(hashes, len(hashes))
    assert reservation is not None, "the pool is too small for this prompt"
    for block, block_hash in zip(reservation.blocks, hashes, strict=True):
        pool.commit(block, block_hash)
    pool.release(reservation.blocks)
    return reservation.num_cached
