"""Row jobs on the native kernels: one call for all layers, in which the GIL is free."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.storage import KvStorage
from triptych.models.model import Model
from triptych.models.native import NativeModel
from triptych_kernels.cpu.structs import KV_TYPES, JobStruct, KvCacheStruct


class NativeRunner:
    """See Runner."""

    def __init__(self, model: Model, storage: KvStorage) -> None:
        self.model = model
        self._native = NativeModel(model)
        self._storage = storage  # keeps the memory behind the struct
        layout = storage.layout
        self._cache = KvCacheStruct(
            storage.address,
            layout.block_bytes,
            layout.layer_bytes,
            layout.num_kv_heads,
            layout.head_dim,
            layout.block_tokens,
            KV_TYPES[layout.dtype],
        )

    def forward(
        self, jobs: Sequence[RowJob], after_layer: Callable[[int], None] | None = None
    ) -> Tensor:
        hidden = self._run(jobs, after_layer)
        ends, row = [], 0
        for job in jobs:
            row += job.end - job.start
            if job.reaches_end:
                ends.append(row - 1)
        return self._native.final_norm(hidden if len(ends) == row else hidden[ends])

    def forward_all(self, jobs: Sequence[RowJob]) -> Tensor:
        return self._native.final_norm(self._run(jobs, None))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._native.logits(hidden)

    @torch.inference_mode()
    def _run(self, jobs: Sequence[RowJob], after_layer: Callable[[int], None] | None) -> Tensor:
        """The residual stream behind the last layer, [M, H]."""
        tokens = [token for job in jobs for token in job.sequence.tokens[job.start : job.end]]
        blocks = array("i")
        for job in jobs:
            blocks.extend(job.sequence.blocks)
        hidden = self._native.embed(torch.tensor(tokens, dtype=torch.int32))
        self._native.run(
            hidden,
            _job_structs(jobs, blocks),
            self._cache,
            max(job.end for job in jobs),
            after_layer,
        )
        return hidden


def _job_structs(jobs: Sequence[RowJob], blocks: array[int]) -> ctypes.Array[JobStruct]:
    """`blocks`: the block tables of all jobs, one behind the other; must outlive the structs."""
    fields, row, table = [], 0, blocks.buffer_info()[0]
    for job in jobs:
        rows = job.end - job.start
        fields.append(JobStruct(row, rows, job.start, 0, table, None))
        row += rows
        table += blocks.itemsize * len(job.sequence.blocks)
    return (JobStruct * len(jobs))(*fields)
