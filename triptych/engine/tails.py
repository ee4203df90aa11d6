"""What lies in the last, unfinished block of each sequence, told beside the pool for whoever may
have to go on with it.

The prefix cache knows full blocks, by what is in them. An unfinished one changes with every step;
its name says whose it is instead (request, choice, place, and all that KV depends on), and a number
beside it how many of its rows are computed. Every life of a request computes the same bits, so rows
of any former home do.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from triptych.engine.sequence import Sequence

NAME_BYTES = 14  # behind them stands the number of rows


def tail_name(sequence: Sequence, index: int) -> bytes:
    """Of block `index` while it is not full. Its parent stands for weights, layout, salt and all
    tokens before it; ids of requests are drawn by the router.
    """
    parent = sequence.hashes()[index - 1] if index else sequence.root
    owner = f"tail {sequence.request_id} {sequence.choice}".encode()
    return blake2b(parent + owner, digest_size=NAME_BYTES).digest()


class Tails:
    """Writes names where the hashes of cached blocks stand. Of the engine's thread."""

    def __init__(self, hashes: NDArray[np.uint8]) -> None:
        """hashes u8 [num_blocks, 16], in shared memory."""
        self._hashes = hashes
        self._rows: NDArray[np.uint16] = hashes.view(np.uint16)[:, -1]

    def note(self, sequence: Sequence) -> None:
        """Behind each step: its rows before `num_computed` are final, and no token behind them has
        been told to anybody yet.
        """
        index, rows = divmod(sequence.num_computed, sequence.block_tokens)
        block = sequence.blocks[index] if rows else None
        if sequence.tail is None or sequence.tail[0] != block:
            self.forget(sequence)
            if block is None:
                return
            name = tail_name(sequence, index)
            self._hashes[block, :NAME_BYTES] = np.frombuffer(name, np.uint8)
            sequence.tail = block, name
        self._rows[sequence.tail[0]] = rows

    def forget(self, sequence: Sequence) -> None:
        """Before its last block is somebody else's, or when it is full and may have a hash."""
        if sequence.tail is None:
            return
        block, name = sequence.tail
        if self._hashes[block, :NAME_BYTES].tobytes() == name:
            self._hashes[block] = 0
        sequence.tail = None
