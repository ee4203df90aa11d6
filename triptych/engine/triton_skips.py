"""What Triton's kernels need to know, and report, of sequences with sparse attention."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

from triptych.engine.sequence import Sequence
from triptych.request import SparseAttention, TileCount
from triptych_kernels.triton.attention import NO_BUDGET, Attended, Skipping


class TileTally:
    """Adds up, on the device and over all layers, what some sequences left out in one forward."""

    def __init__(self, sequences: Seq[Sequence], num_rows: Seq[int], device: torch.device) -> None:
        """`num_rows`: of each sequence; they lie one behind the other."""
        settings = [_asked(sequence) for sequence in sequences]
        self.skipping = Skipping(
            torch.tensor([of.scale for of in settings], device=device),
            torch.tensor([min(of.max_omitted, NO_BUDGET) for of in settings], device=device),
            scaled=True,
        )
        self._sequences = sequences
        owners = [number for number, rows in enumerate(num_rows) for _ in range(rows)]
        self._owners = torch.tensor(owners, device=device)
        self._counts = torch.zeros(len(sequences), 2, dtype=torch.int64, device=device)
        self._omitted = torch.zeros(len(sequences), dtype=torch.float32, device=device)

    def add(self, attended: Attended) -> None:
        """Of one layer; waits for nothing."""
        assert attended.counts is not None and attended.eps is not None
        self._counts += attended.counts.sum(1)
        self._omitted.scatter_reduce_(0, self._owners, attended.eps.amax(1), "amax")

    def tell(self) -> None:
        """Adds what was seen to the sequences' own counts; waits for the device."""
        found = zip(self._sequences, self._counts.tolist(), self._omitted.tolist(), strict=True)
        for sequence, (seen, skipped), omitted in found:
            sequence.tiles.add(TileCount(seen, skipped, omitted))


def _asked(sequence: Sequence) -> SparseAttention:
    assert sequence.sparse is not None, "dense sequences have kernels of their own"
    return sequence.sparse
