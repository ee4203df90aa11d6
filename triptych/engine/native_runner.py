"""Row jobs on the native kernels: one call for all layers, in which the GIL is free."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.engine.pages import PageRow, PageScores, ScoreWishes
from triptych.engine.rows import RowJob, wanted_rows
from triptych.engine.selected_pages import SelectedPages
from triptych.engine.shared_prefix import NOTHING, Shared, share_prefixes
from triptych.engine.skipping import Skips
from triptych.engine.storage import KvStorage
from triptych.models.model import Model
from triptych.models.native import NativeModel
from triptych.models.taps import Tap
from triptych_kernels.cpu.structs import KV_TYPES, JobStruct, KvCacheStruct

_FEW_ROWS = 16  # of a job that may share: more rows fill vectors by themselves


class NativeRunner:
    """See Runner."""

    device = torch.device("cpu")

    def __init__(self, model: Model, storage: KvStorage, *, share: bool = True) -> None:
        """`share`: KV that jobs of a step have in common is read once. Changes no bit."""
        self.model = model
        self.share = share
        self._native = NativeModel(model)
        self._storage = storage  # keeps the memory behind the struct
        self._wishes = ScoreWishes()
        layout = storage.layout
        self._pages = SelectedPages(layout, model.config.windows.count(None))
        self._cache = KvCacheStruct(
            storage.address,
            layout.block_bytes,
            layout.layer_bytes,
            layout.num_kv_heads,
            layout.head_dim,
            layout.block_tokens,
            KV_TYPES[layout.dtype],
            layout.index_dim,
        )

    def forward(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        hidden = self._run(jobs, taps)
        wanted = wanted_rows(jobs)
        return self._native.final_norm(hidden if len(wanted) == len(hidden) else hidden[wanted])

    def forward_all(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        return self._native.final_norm(self._run(jobs, taps))

    @torch.inference_mode()
    def forward_hidden(self, jobs: Sequence[RowJob], hidden: Tensor) -> Tensor:
        return self._layers(jobs, hidden.contiguous(), ())

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self._native.final_norm(hidden)

    def score_pages(self, scores: PageScores) -> None:
        self._wishes.add(scores)

    @torch.inference_mode()
    def forward_pages(self, rows: Sequence[PageRow]) -> Tensor:
        assert not self.model.config.chooses, "a model that chooses its tokens reads no pages"
        hidden = self._native.embed(torch.tensor([row.token for row in rows], dtype=torch.int32))
        tables = [row.table.blocks(row.sequence) for row in rows]
        self._native.run(
            hidden,
            _page_structs(rows, tables, self._storage.layout.block_tokens),
            self._cache,
            max(row.position for row in rows) + 1,
        )
        return self._native.final_norm(hidden)

    def move_kv(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        slots = array("i", [slot for move in moves for slot in move])
        self._native.move_kv(self._cache, array("i", blocks), slots)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._native.logits(hidden)

    @torch.inference_mode()
    def _run(self, jobs: Sequence[RowJob], taps: Sequence[Tap]) -> Tensor:
        """The residual stream behind the last layer, [M, H]."""
        tokens = [token for job in jobs for token in job.tokens]
        hidden = self._native.embed(torch.tensor(tokens, dtype=torch.int32))
        return self._layers(jobs, hidden, taps)

    def _layers(self, jobs: Sequence[RowJob], hidden: Tensor, taps: Sequence[Tap]) -> Tensor:
        blocks = array("i")
        for job in jobs:
            blocks.extend(job.seen_blocks)
        parents = [_as_array(job.parents) for job in jobs]
        scores = [
            None if wish is None else wish.make_room(job, self._storage.layout)
            for job, wish in zip(jobs, self._wishes.take(jobs), strict=True)
        ]
        size = self._storage.layout.block_tokens
        structs = _job_structs(jobs, blocks, parents, scores, size)
        if self.share:
            _put_shared(structs, _shared(jobs, size))
        skips = Skips(jobs, self._storage.layout.num_layers)
        pages = self._pages.prepare(jobs)
        self._native.run(
            hidden,
            pages.put(skips.put(structs)),
            self._cache,
            max(job.end + len(job.draft) for job in jobs),
            taps,
        )
        skips.count()
        pages.done()
        return hidden


def _as_array(values: list[int] | None) -> array[int] | None:
    return None if values is None else array("i", values)


def _job_structs(
    jobs: Sequence[RowJob],
    blocks: array[int],
    parents: Sequence[array[int] | None],
    scores: Sequence[NDArray[np.float32] | None],
    block_tokens: int,
) -> ctypes.Array[JobStruct]:
    """`blocks`: block tables, one behind the other. All arguments must outlive the structs."""
    fields, row, table = [], 0, blocks.buffer_info()[0]
    for job, tree, shares in zip(jobs, parents, scores, strict=True):
        rows = job.num_rows
        above = None if tree is None else tree.buffer_info()[0]
        to = None if shares is None else shares.ctypes.data
        skipped = job.first_block * block_tokens
        start = job.start - skipped
        fields.append(JobStruct(row, rows, start, skipped, table, above, 0, 0, to, job.num_wanted))
        row += rows
        table += blocks.itemsize * len(job.seen_blocks)
    return (JobStruct * len(jobs))(*fields)


def _shared(jobs: Sequence[RowJob], block_tokens: int) -> list[Shared]:
    """Sparse jobs stay alone: each of their lanes sees two tiles before it folds the first."""
    if len(jobs) < 2:
        return [NOTHING] * len(jobs)
    known = [
        0
        if job.sequence.sparse is not None or job.num_rows > _FEW_ROWS
        else job.start - job.first_block * block_tokens
        for job in jobs
    ]
    return share_prefixes([job.seen_blocks for job in jobs], known, block_tokens)


def _put_shared(structs: ctypes.Array[JobStruct], shared: Sequence[Shared]) -> None:
    for struct, (bundle, slots) in zip(structs, shared, strict=True):
        struct.bundle, struct.shared = bundle, slots


def _page_structs(
    rows: Sequence[PageRow], tables: Sequence[NDArray[np.int32]], block_tokens: int
) -> ctypes.Array[JobStruct]:
    """`tables` [L, Hkv, P] must outlive the structs."""
    fields = []
    for number, (row, table) in enumerate(zip(rows, tables, strict=True)):
        slot = row.slot(block_tokens)
        address, (_, heads, pages) = table.ctypes.data, table.shape
        skipped = row.position - slot
        fields.append(JobStruct(number, 1, slot, skipped, address, None, heads * pages, pages))
    return (JobStruct * len(rows))(*fields)
