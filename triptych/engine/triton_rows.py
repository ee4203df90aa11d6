"""Row jobs as Triton's kernels take them: rows one behind the other, cut by how they attend."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from triptych.engine.device_kv import DeviceKv
from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.engine.triton_bundles import find_bundles, share_splits
from triptych.engine.triton_skips import TileTally
from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv, tiles_for
from triptych_kernels.triton.column_scores import column_scores
from triptych_kernels.triton.decode import paged_decode
from triptych_kernels.triton.prefill import paged_prefill, rows_for
from triptych_kernels.triton.shared_splits import SharedSplits
from triptych_kernels.triton.tree import Trees, make_trees, verify_attention

FEW_ROWS = 16  # of a sequence, that decode's kernel takes; only its time depends on that

Kind = Literal["chunk", "few", "tree"]


class Span(NamedTuple):
    """Rows [first, first + num_rows) of a batch that are the last ones of `length` slots."""

    kind: Kind
    first: int
    num_rows: int
    sequence: Sequence
    blocks: Seq[int]
    length: int
    masks: Seq[int] = ()  # of a tree, see triton/tree.py

    @property
    def kernel(self) -> tuple[Kind, bool]:
        """Spans of the same one attend in one call. Dense rows never run the kernel that leaves out
        tiles: who else is in their batch must not show.
        """
        return self.kind, self.sequence.sparse is not None

    @property
    def known(self) -> int:
        """Slots before the first row."""
        return self.length - self.num_rows


def spans_of(jobs: Seq[RowJob], block_tokens: int) -> Iterator[Span]:
    """In the order of the rows. Nodes of a tree are apart from the known rows before them. Pure."""
    first = 0
    for job in jobs:
        skipped = job.first_block * block_tokens
        is_tree = job.draft.parents is not None
        nodes = len(job.draft) if is_tree else 0
        chain, blocks, end = job.num_rows - nodes, job.seen_blocks, job.end - skipped
        if chain:
            kind: Kind = "few" if chain <= FEW_ROWS else "chunk"
            length = end if is_tree else end + len(job.draft)
            yield Span(kind, first, chain, job.sequence, blocks, length)
        if nodes:
            masks = [sum(1 << step for step in job.draft.path(node)) for node in range(nodes)]
            begin = first + chain
            yield Span("tree", begin, nodes, job.sequence, blocks, end + nodes, masks)
        first += job.num_rows


def slots_of(jobs: Seq[RowJob], block_tokens: int) -> list[int]:
    """Of each row, block · block_tokens + offset. Pure."""
    slots = []
    for job in jobs:
        blocks = job.sequence.blocks
        for place in range(job.start, job.end + len(job.draft)):
            slots.append(blocks[place // block_tokens] * block_tokens + place % block_tokens)
    return slots


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that attend in one call; the tensors are on the device."""

    kind: Kind
    rows: Tensor | None  # int64, their places in the batch; None: all of it
    row_starts: Tensor  # int32 [B + 1]
    tables: Tensor  # int32 [B, P]
    lengths: Tensor  # int32 [B]
    max_rows: int
    max_length: int
    trees: Trees | None = None
    tally: TileTally | None = None  # None: attention is dense
    shared: SharedSplits | None = None  # None: not looked for, in chunks and sparse attention

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Attended:
        attended = self._attend(q, keys, values, shape)
        if self.tally is not None:
            self.tally.add(attended)
        return attended

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, shape: AttentionShape) -> Attended:
        """All three kernels get tiles of the same shape: then tensor cores give a row the same bits
        in all of them (docs/kernels.md).
        """
        kv = PagedKv(keys, values, self.tables, self.lengths)
        skipping = None if self.tally is None else self.tally.skipping
        if self.kind == "chunk":
            return paged_prefill(
                q, kv, self.row_starts, shape, max_rows=self.max_rows, skipping=skipping
            )
        tile = rows_for(tiles_for(q.dtype, q.shape[2]))
        shared = self.shared if shape.window is None else None
        if self.trees is not None:
            return verify_attention(
                q,
                kv,
                self.trees,
                shape,
                max_length=self.max_length,
                skipping=skipping,
                shared=shared,
                block_rows=tile,
            )[0]
        return paged_decode(
            q,
            kv,
            self.row_starts,
            shape,
            max_rows=self.max_rows,
            max_length=self.max_length,
            skipping=skipping,
            shared=shared,
            block_rows=tile,
        )


def parts_of(jobs: Seq[RowJob], block_tokens: int, device: torch.device) -> list[Part]:
    """One of each kind of attention that the jobs need."""
    spans = list(spans_of(jobs, block_tokens))
    kernels = sorted({span.kernel for span in spans})
    parts = []
    for kernel in kernels:
        own = [span for span in spans if span.kernel == kernel]
        parts.append(_part_of(own, block_tokens, device, whole=len(kernels) == 1))
    return parts


def _part_of(spans: list[Span], block_tokens: int, device: torch.device, *, whole: bool) -> Part:
    """Of spans of one kernel. whole: they are all of the batch."""
    kind, sparse = spans[0].kernel
    may_share = kind != "chunk" and not sparse
    order, bundles = find_bundles(
        [span.blocks for span in spans],
        [span.known if may_share else 0 for span in spans],
        block_tokens,
    )
    spans = [spans[number] for number in order]
    counts = [span.num_rows for span in spans]
    rows = [row for span in spans for row in range(span.first, span.first + span.num_rows)]
    in_place = whole and not bundles
    starts = [0, *accumulate(counts)]
    tables = _tables([span.blocks for span in spans])
    return Part(
        kind,
        None if in_place else torch.tensor(rows, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        tables.to(device),
        torch.tensor([span.length for span in spans], dtype=torch.int32, device=device),
        max(counts),
        max(span.length for span in spans),
        make_trees([span.masks for span in spans], device) if kind == "tree" else None,
        TileTally([span.sequence for span in spans], counts, device) if sparse else None,
        share_splits(bundles, tables, starts, device) if may_share else None,
    )


def _tables(blocks: Seq[Seq[int]]) -> Tensor:
    """int32 [B, P], on the host; what stands behind a table's end is never looked at."""
    width = max(len(table) for table in blocks)
    filled = [[*table, *([0] * (width - len(table)))] for table in blocks]
    return torch.tensor(filled, dtype=torch.int32)


@dataclass(frozen=True, slots=True)
class BatchView:
    """The KV of one batch. Implements the models' RowsView."""

    kv: DeviceKv
    slots: Tensor
    parts: Seq[Part]
    scores: Seq[Scored] = ()

    def count_tiles(self) -> None:
        """Behind the last layer: tells sequences with sparse attention what they left out."""
        for part in self.parts:
            if part.tally is not None:
                part.tally.tell()

    def pool(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.kv.keys(layer), self.kv.values(layer)

    def attend(self, layer: int, q: Tensor, shape: AttentionShape) -> Tensor:
        keys, values = self.pool(layer)
        if len(self.parts) == 1 and self.parts[0].rows is None:
            attended = self.parts[0].attend(q, keys, values, shape)
            out, lse2 = attended.out, attended.lse2
        else:
            out, lse2 = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
            for part in self.parts:
                attended = part.attend(q[part.rows], keys, values, shape)
                out[part.rows], lse2[part.rows] = attended.out, attended.lse2
        if shape.window is None:
            for scored in self.scores:
                scored.score(layer, q, keys, lse2, shape)
        return out


@dataclass(frozen=True, slots=True)
class Scored:
    """The wanted rows of a job, whose attention to each page is asked for."""

    rows: slice
    row_starts: Tensor  # int32 [2]
    tables: Tensor  # int32 [1, P]
    lengths: Tensor  # int32 [1]
    length: int
    shares: Tensor  # float32 [L, Hkv, pages] on the host, to be filled in

    def score(
        self, layer: int, q: Tensor, keys: Tensor, lse2: Tensor, shape: AttentionShape
    ) -> None:
        found = column_scores(
            q[self.rows],
            PagedKv(keys, keys, self.tables, self.lengths),
            self.row_starts,
            shape,
            lse2[self.rows].contiguous(),
            max_length=self.length,
            pool=keys.shape[1],
        )
        self.shares[layer] = found[0].cpu()
