"""A KV pool as bytes: anonymous shared memory with a generation and a hash per block.

Layout of the memfd: one header page (magic, sizes) and a probe page with a known pattern, then the
generations (u64 per block) and the hashes of the blocks that are in the prefix cache (16 bytes
each; zeros: it is not; of unfinished blocks see triptych/engine/tails.py), then the blocks from a
page boundary on. The memfd has no name, so kill -9 leaves nothing behind; for as long as somebody
has it mapped, what the dead one computed can be read (triptych/worker/salvage.py). The pool is
reserved up front: a full tmpfs is an error at start, not a SIGBUS later.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transport.kv.memory import available_bytes

PAGE = 4096
_HEADER = struct.Struct("<8sQQQ")  # magic, block bytes, blocks, offset of block 0
_MAGIC = b"TRIKVP02"
PROBE_BYTES = PAGE
HASH_BYTES = 16


@dataclass(frozen=True, slots=True)
class RegionShape:
    block_bytes: int
    num_blocks: int

    @property
    def generations_offset(self) -> int:
        return 2 * PAGE

    @property
    def hashes_offset(self) -> int:
        return self.generations_offset + 8 * self.num_blocks

    @property
    def blocks_offset(self) -> int:
        end = self.hashes_offset + HASH_BYTES * self.num_blocks
        return -(-end // PAGE) * PAGE

    @property
    def total_bytes(self) -> int:
        return self.blocks_offset + self.block_bytes * self.num_blocks


class Region:
    """Our own pool (`create`, writable) or a peer's (`attach`, read-only: a bug here cannot harm
    the peer).

    `generations` u64 [num_blocks]; `hashes` u8 [num_blocks, 16]; `blocks` u8 [num_blocks,
    block_bytes]: views of the mapping. Populated: the first copy into or out of a block does not
    pay for thousands of page faults.
    """

    def __init__(
        self, fd: int, shape: RegionShape, *, writable: bool, populate: bool = True
    ) -> None:
        self.fd = fd
        self.shape = shape
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if populate else 0)
        self._map = mmap.mmap(fd, shape.total_bytes, flags, protection)
        whole = np.frombuffer(self._map, dtype=np.uint8)
        self.probe: NDArray[np.uint8] = whole[PAGE : PAGE + PROBE_BYTES]
        first, second = shape.generations_offset, shape.hashes_offset
        self.generations: NDArray[np.uint64] = whole[first:second].view(np.uint64)
        end = second + HASH_BYTES * shape.num_blocks
        self.hashes: NDArray[np.uint8] = whole[second:end].reshape(-1, HASH_BYTES)
        self.blocks: NDArray[np.uint8] = whole[shape.blocks_offset : shape.total_bytes].reshape(
            shape.num_blocks, shape.block_bytes
        )

    @classmethod
    def create(cls, shape: RegionShape) -> Region:
        """Reserves and pre-faults the memory. Raises OSError that says how much, when it fails."""
        size, available = shape.total_bytes, available_bytes()
        if size > available:
            raise OSError(
                errno.ENOMEM, f"a KV pool of {size} bytes does not fit: {available} are available"
            )
        fd = os.memfd_create("triptych-kv", os.MFD_CLOEXEC)
        try:
            _reserve(fd, size)
            header = _HEADER.pack(_MAGIC, shape.block_bytes, shape.num_blocks, shape.blocks_offset)
            os.pwrite(fd, header, 0)
            os.pwrite(fd, probe_pattern(shape).tobytes(), PAGE)
            return cls(fd, shape, writable=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, *, populate: bool = True) -> Region:
        """Maps a peer's pool from a received descriptor, which the region then owns."""
        magic, block_bytes, num_blocks, offset = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        shape = RegionShape(block_bytes, num_blocks)
        if magic != _MAGIC or offset != shape.blocks_offset:
            raise ValueError("not a KV pool, or of another version")
        if os.fstat(fd).st_size < shape.total_bytes:
            raise ValueError("KV pool is shorter than its header says")
        return cls(fd, shape, writable=False, populate=populate)

    def close(self) -> None:
        """Drops our views; the mapping goes when the last outside view of it does."""
        if self.fd < 0:
            return
        del self.probe, self.generations, self.hashes, self.blocks, self._map
        os.close(self.fd)
        self.fd = -1


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)  # zero-filled and resident
    except OSError as error:
        text = f"cannot reserve a KV pool of {size} bytes: {error.strerror}"
        raise OSError(error.errno, text) from error


def probe_pattern(shape: RegionShape) -> NDArray[np.uint8]:
    """Bytes that a probe must bring back; they depend on the pool's shape."""
    rng = np.random.default_rng(shape.block_bytes * 1_000_003 + shape.num_blocks)
    return rng.integers(0, 256, PROBE_BYTES, dtype=np.uint8)
