"""The KV pool in a device's memory, and its mirror on the host, which peers read and write.

Links know memory of the host alone: they read a region of shared memory, and fetch into it. So a
device's pool has a region of equal size beside it, and blocks are copied between the two when
somebody needs them: down when a block becomes final, up when a sequence is to see a block that a
link wrote. Who wrote last is told by generations (triptych/kv/pool.py): a block whose generation is
not the one that the device knows came from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.kv.layout import KvLayout

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_UNKNOWN = np.iinfo(np.uint64).max  # a generation that no block ever has


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """The host's copy. Both arrays must outlive it."""

    blocks: NDArray[np.uint8]  # [num_blocks, block_bytes]
    generations: NDArray[np.uint64]  # [num_blocks], of the pool that hands blocks out


class DeviceKv:
    """Keys and values of all layers. A block is layer after layer, keys [KV heads, tokens, head
    dim], then values, which lie the same way: kernels here read both by token. (On the CPU values
    lie transposed. Blocks are exchanged between workers of the same kernels only, see
    `compute_identity`.)
    """

    def __init__(
        self,
        layout: KvLayout,
        num_blocks: int,
        device: torch.device,
        mirror: Mirror | None = None,
    ) -> None:
        """`mirror` None: nobody else ever sees this pool."""
        assert layout.dtype in _DTYPES, "choose_backend refuses other types"
        self.layout = layout
        self.num_blocks = num_blocks
        shape = (layout.num_layers, 2, layout.num_kv_heads, layout.block_tokens, layout.head_dim)
        dtype = _DTYPES[layout.dtype]
        # Zeros, for what a mask hides is still multiplied by 0, and NaN × 0 is NaN.
        self._pool = torch.zeros(num_blocks, *shape, dtype=dtype, device=device)
        self._mirror: Tensor | None = None
        self._generations: NDArray[np.uint64] | None = None
        self._known = np.full(num_blocks, _UNKNOWN)  # by block, the generation that is here
        if mirror is not None:
            assert mirror.blocks.shape == (num_blocks, layout.block_bytes), "pool and mirror differ"
            self._mirror = torch.from_numpy(mirror.blocks).view(dtype).view(num_blocks, *shape)
            self._generations = mirror.generations

    @property
    def device(self) -> torch.device:
        return self._pool.device

    @property
    def dtype(self) -> torch.dtype:
        return self._pool.dtype

    def keys(self, layer: int) -> Tensor:
        """A view [num_blocks, block_tokens, kv_heads, head_dim], as values."""
        return self._pool[:, layer, 0].transpose(1, 2)

    def values(self, layer: int) -> Tensor:
        return self._pool[:, layer, 1].transpose(1, 2)

    def move(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        """Copies KV from slot to slot of a sequence's blocks, in all layers, in order."""
        size = self.layout.block_tokens
        for source, target in moves:
            to = self._pool[blocks[target // size], :, :, :, target % size]
            to.copy_(self._pool[blocks[source // size], :, :, :, source % size])
        full = {target // size for _, target in moves if target % size == size - 1}
        self.copy_down([blocks[page] for page in full])

    def bring(self, jobs: Sequence[RowJob]) -> None:
        """Before a forward of `jobs`: copies up what links wrote and their rows will see."""
        if self._mirror is None or self._generations is None:
            return
        size, copied = self.layout.block_tokens, False
        for job in jobs:
            blocks = np.array(job.seen_blocks)
            skipped = job.first_block * size
            end = self.layout.blocks_for(job.end + len(job.draft) - skipped)
            stale = np.flatnonzero(self._known[blocks[:end]] != self._generations[blocks[:end]])
            for page in stale.tolist():
                block = int(blocks[page])
                if page * size < job.start - skipped:  # else the device writes it first
                    self._pool[block].copy_(self._mirror[block], non_blocking=True)
                    copied = True
                self._known[block] = self._generations[block]
        if copied:
            self._wait()  # the host may write there again as soon as the sequence has ended

    def copy_down(self, blocks: Sequence[int], first: int = 0, end: int | None = None) -> None:
        """Layers [first, end) of blocks into the mirror. When this returns peers may read them."""
        if self._mirror is None or not blocks:
            return
        for block in blocks:
            self._mirror[block, first:end].copy_(self._pool[block, first:end], non_blocking=True)
        self._wait()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def full_blocks(jobs: Sequence[RowJob], block_tokens: int, *, closing: bool) -> list[int]:
    """Blocks whose last slot the jobs' rows write. With `closing` also a partial one at the end of
    what is known of a sequence: prefill workers announce these.
    """
    found: list[int] = []
    for job in jobs:
        end = job.end + len(job.draft)
        pages = -(-end // block_tokens) if closing and job.reaches_end else end // block_tokens
        found += job.sequence.blocks[job.start // block_tokens : pages]
    return found
