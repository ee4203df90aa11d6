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
        found = [
            (number, job.sequence, job.sequence.sparse)
            for number, job in enumerate(jobs)
            if job.sequence.sparse is not None and job.sequence.sparse.skips
        ]
        self._numbers = [number for number, _, _ in found]
        self._sequences = [sequence for _, sequence, _ in found]
        self._counts = ((SkipCountStruct * num_layers) * len(found))()
        self._structs = [
            SkippingStruct(sparse.scale, sparse.max_omitted, counts)
            for (_, _, sparse), counts in zip(found, self._counts, strict=True)
        ]

    def put(self, structs: ctypes.Array[JobStruct]) -> ctypes.Array[JobStruct]:
        for number, struct in zip(self._numbers, self._structs, strict=True):
            structs[number].skipping = ctypes.pointer(struct)
        return structs

    def count(self) -> None:
        """Adds what was seen to the sequences' own counts."""
        for sequence, layers in zip(self._sequences, self._counts, strict=True):
            for layer in layers:
                sequence.tiles.add(TileCount(layer.tiles, layer.skipped, layer.omitted))
