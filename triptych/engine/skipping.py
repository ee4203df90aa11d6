"""What the native kernels need to know, and report, of jobs with sparse attention."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from triptych.engine.rows import RowJob
from triptych.request import TileCount
from triptych_kernels.cpu.structs import JobStruct, SkipCountStruct, SkippingStruct


class Skips:
    """Those of one forward. Must outlive it; `count` afterwards."""

    def __init__(self, jobs: Sequence[RowJob], num_layers: int) -> None:
        self._sparse = [
            (number, job.sequence) for number, job in enumerate(jobs) if job.sequence.sparse
        ]
        counts = (SkipCountStruct * num_layers) * len(self._sparse)
        self._counts = counts()
        self._structs = [
            SkippingStruct(sequence.sparse.scale, sequence.sparse.max_omitted, self._counts[i])
            for i, (_, sequence) in enumerate(self._sparse)
            if sequence.sparse is not None
        ]

    def put(self, structs: ctypes.Array[JobStruct]) -> ctypes.Array[JobStruct]:
        for (number, _), struct in zip(self._sparse, self._structs, strict=True):
            structs[number].skipping = ctypes.pointer(struct)
        return structs

    def count(self) -> None:
        """Adds what was seen to the sequences' own counts."""
        for (_, sequence), layers in zip(self._sparse, self._counts, strict=True):
            for layer in layers:
                sequence.tiles.add(TileCount(layer.tiles, layer.skipped, layer.omitted))
