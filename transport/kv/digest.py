"""Digests of block slices: what a source announces and a home compares after the copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from transport.kv.base import DigestMismatch, KvLinkError
from transport.kv.iovecs import flat_view
from transport.kv.region import Region

DigestMode = Literal["full", "sampled", "off"]
SAMPLE_EVERY = 16
NOT_SAMPLED = 0


def digests(
    region: Region, blocks: Sequence[int], offset: int, length: int, mode: DigestMode
) -> list[int]:
    """xxh3-64 of bytes [offset, offset + length) of each block; NOT_SAMPLED for those left out.

    "sampled" takes the first, the last and every 16th of the list.
    """
    last = len(blocks) - 1
    return [
        digest_of(_slice(region, block, offset, length))
        if mode == "full" or (mode == "sampled" and (at % SAMPLE_EVERY == 0 or at == last))
        else NOT_SAMPLED
        for at, block in enumerate(blocks)
    ]


def check_digests(
    region: Region, blocks: Sequence[int], offset: int, length: int, announced: Sequence[int]
) -> None:
    """Compares our `blocks` with what was announced; those not sampled pass.

    Raises DigestMismatch, or KvLinkError when the lists have other lengths.
    """
    if len(announced) != len(blocks):
        raise KvLinkError(f"{len(announced)} digests announced for {len(blocks)} blocks")
    for block, wanted in zip(blocks, announced, strict=True):
        if wanted != NOT_SAMPLED and digest_of(_slice(region, block, offset, length)) != wanted:
            raise DigestMismatch(f"the bytes in our block {block} differ from their digest")


def digest_of(data: NDArray[np.uint8]) -> int:
    """Never NOT_SAMPLED. No copy."""
    return xxhash.xxh3_64_intdigest(flat_view(data)) or 1


def _slice(region: Region, block: int, offset: int, length: int) -> NDArray[np.uint8]:
    return region.blocks[block, offset : offset + length]
