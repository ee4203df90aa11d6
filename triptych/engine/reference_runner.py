"""Merges row jobs into one forward.

The rows of all jobs stand one after the other, padded with dummy rows to a multiple of 16 (see
`triptych_kernels.reference`): whatever kind a job is, its rows meet the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.engine.pages import PageRow, PageScores, ScoreWishes
from triptych.engine.rows import RowJob, wanted_rows
from triptych.engine.selected_pages import count_pages, pages_kept
from triptych.engine.states import take_in
from triptych.engine.storage import KvStorage
from triptych.models.model import Model
from triptych.models.seams import DeltaRows, IndexRows, NsaRows
from triptych.models.taps import Tap
from triptych.request import PAGE_TOKENS
from triptych_kernels import (
    append_kv,
    choose_pages,
    choose_tokens,
    nsa_attention,
    pad_rows,
    page_scores,
    paged_attention,
)


class ReferenceRunner:
    """Plain torch. One forward at a time."""

    device = torch.device("cpu")

    def __init__(self, model: Model, storage: KvStorage) -> None:
        self.model = model
        self._storage = storage
        self._wishes = ScoreWishes()

    @torch.inference_mode()
    def forward(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        hidden, _ = self._run(jobs, taps)
        return hidden[wanted_rows(jobs)]

    @torch.inference_mode()
    def forward_all(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        hidden, spans = self._run(jobs, taps)
        return hidden[: spans[-1][1]]

    def _run(
        self, jobs: Sequence[RowJob], taps: Sequence[Tap]
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        tokens = [token for job in jobs for token in job.tokens]
        positions = _positions(jobs)
        view = PagedView(self._storage, jobs, self._wishes.take(jobs))
        hidden = self.model.forward(pad_rows(torch.tensor(tokens)), pad_rows(positions), view, taps)
        view.count_pages(self.model.config.windows.count(None))
        return hidden, view.spans

    @torch.inference_mode()
    def forward_hidden(self, jobs: Sequence[RowJob], hidden: Tensor) -> Tensor:
        positions, view = _positions(jobs), PagedView(self._storage, jobs)
        return self.model.layers_over(pad_rows(hidden), pad_rows(positions), view)[: len(hidden)]

    @torch.inference_mode()
    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.model.norm(hidden)

    def score_pages(self, scores: PageScores) -> None:
        self._wishes.add(scores)

    @torch.inference_mode()
    def forward_pages(self, rows: Sequence[PageRow]) -> Tensor:
        tokens = pad_rows(torch.tensor([row.token for row in rows]))
        positions = pad_rows(torch.tensor([row.position for row in rows]))
        hidden = self.model.forward(tokens, positions, ChosenPagesView(self._storage, rows))
        return hidden[: len(rows)]

    def move_kv(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        self._storage.move(blocks, moves)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)


class PagedView:
    """The KV that the rows of one batch may see. Implements the models' KvView."""

    def __init__(
        self,
        storage: KvStorage,
        jobs: Sequence[RowJob],
        scores: Sequence[PageScores | None] = (),
    ) -> None:
        self._storage = storage
        self._jobs = jobs
        self._blocks = [torch.tensor(job.seen_blocks) for job in jobs]
        self._skipped = [job.first_block * storage.layout.block_tokens for job in jobs]
        self._kept = [pages_kept(job) for job in jobs]
        self._scores = [
            (place, wish.make_room(jobs[place], storage.layout))
            for place, wish in enumerate(scores)
            if wish is not None
        ]
        self.spans: list[tuple[int, int]] = []  # rows of each job in the batch
        slots, row = [], 0
        for job, blocks, skipped in zip(jobs, self._blocks, self._skipped, strict=True):
            self.spans.append((row, row + job.num_rows))
            row += job.num_rows
            slot = torch.arange(job.start, job.end + len(job.draft)) - skipped
            size = storage.layout.block_tokens
            slots.append(blocks[slot // size] * size + slot % size)
        self._slots = torch.cat(slots)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        index: IndexRows | NsaRows | None = None,
    ) -> Tensor:
        """Appends k and v of the real rows, then attends job by job. Padding rows come back as
        zeros.
        """
        real = self._slots.shape[0]
        pools = self._storage.pools(layer)
        brought = (k, v, index.keys) if isinstance(index, IndexRows) else (k, v)
        for pool, part in zip(pools, brought, strict=True):
            append_kv(pool, part[:real].view(real, *pool.shape[2:]), self._slots)
        out = torch.zeros_like(q)
        attention = partial(
            paged_attention, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
        if isinstance(index, NsaRows):
            assert window is None and softcap is None and sinks is None, "no part knows of these"
            attention = partial(
                nsa_attention,
                scale=scale,
                block_tokens=index.block_tokens,
                top_k=index.top_k,
                window=index.window,
            )
        views = zip(self.spans, self._jobs, self._blocks, self._skipped, self._kept, strict=True)
        for (begin, end), job, blocks, skipped, kept in views:
            nodes = end if job.draft.parents is None else end - len(job.draft)
            start = job.start - skipped
            if window is not None:
                kept = None
            if nodes > begin:
                rows = slice(begin, nodes)
                of_rows = kept and kept[: nodes - begin]
                out[rows] = _attend(attention, q, index, of_rows, rows, pools, blocks, start)
            for node in range(end - nodes):
                rows = slice(nodes + node, nodes + node + 1)
                path = _path_of(job, node, blocks, job.end - skipped, pools)
                of_node = kept and [kept[nodes - begin + node]]
                out[rows] = _attend(attention, q, index, of_node, rows, *path)
        if window is None:
            self._score(layer, q, pools[0], scale=scale, softcap=softcap, sinks=sinks)
        return out

    def count_pages(self, num_layers: int) -> None:
        """Tells sequences what their rows chose from, in so many layers."""
        for job, kept in zip(self._jobs, self._kept, strict=True):
            if kept is not None:
                times = num_layers * self._storage.layout.num_kv_heads
                job.sequence.tiles.add(count_pages(job, kept, times))

    def take_in(self, layer: int, rows: DeltaRows) -> Tensor:
        """Job by job, see StateView. Padding rows come back as zeros."""
        sizes = rows.sizes
        out = rows.mixed.new_zeros(
            len(rows.mixed), sizes.value_heads, sizes.value_dim, dtype=torch.float32
        )
        states = self._storage.states(layer, sizes)
        for (begin, end), job in zip(self.spans, self._jobs, strict=True):
            out[begin:end] = take_in(states, job, rows, begin, self._storage.layout.block_tokens)
        return out

    def _score(self, layer: int, q: Tensor, keys: Tensor, **how: Any) -> None:
        for place, shares in self._scores:
            job, (_, end) = self._jobs[place], self.spans[place]
            rows, start = q[end - job.num_wanted : end], job.end - 1
            found = page_scores(rows, keys, self._blocks[place], start, **how)
            shares[layer] = found.numpy()


class ChosenPagesView:
    """The KV of rows that read chosen pages. Implements the models' KvView."""

    def __init__(self, storage: KvStorage, rows: Sequence[PageRow]) -> None:
        size = storage.layout.block_tokens
        self._storage = storage
        self._tables = [torch.from_numpy(row.table.blocks(row.sequence)).long() for row in rows]
        self._starts = [row.slot(size) for row in rows]
        self._slots = torch.tensor(
            [row.sequence.blocks[row.position // size] * size + row.position % size for row in rows]
        )

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        index: IndexRows | NsaRows | None = None,
    ) -> Tensor:
        assert index is None, "a model that chooses its tokens reads no pages"
        real = len(self._starts)
        keys, values = self._storage.keys(layer), self._storage.values(layer)
        append_kv(keys, k[:real], self._slots)
        append_kv(values, v[:real], self._slots)
        out = torch.zeros_like(q)
        group = q.shape[1] // keys.shape[2]
        attention = partial(paged_attention, scale=scale, window=window, softcap=softcap)
        for row, (table, start) in enumerate(zip(self._tables, self._starts, strict=True)):
            for head, blocks in enumerate(table[layer]):
                own, kept = slice(head * group, (head + 1) * group), slice(head, head + 1)
                pools = keys[:, :, kept], values[:, :, kept]
                out[row : row + 1, own] = attention(
                    q[row : row + 1, own],
                    *pools,
                    blocks,
                    start,
                    sinks=None if sinks is None else sinks[own],
                )
        return out


def _positions(jobs: Sequence[RowJob]) -> Tensor:
    return torch.tensor([position for job in jobs for position in job.positions])


def _attend(
    attention: Callable[..., Tensor],
    q: Tensor,
    index: IndexRows | NsaRows | None,
    kept: Sequence[int] | None,
    rows: slice,
    pools: Sequence[Tensor],
    blocks: Tensor,
    start: int,
) -> Tensor:
    """Some rows of q, which stand one behind the other from slot `start` on; `kept`: pages that
    each one reads.
    """
    if isinstance(index, NsaRows):
        return attention(q[rows], *pools, blocks, start, index.gates[rows])
    chosen = None
    if kept is not None:
        chosen = choose_pages(q[rows], pools[0], blocks, start, kept, PAGE_TOKENS)
    if index is not None:
        chosen = choose_tokens(
            index.queries[rows], index.weights[rows], pools[2], blocks, start, index.top_k
        )
    return attention(q[rows], *pools[:2], blocks, start, chosen=chosen)


def _path_of(
    job: RowJob, node: int, blocks: Tensor, end: int, pools: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, int]:
    """What is kept of a node's path, which begins in slot `end`, as if it were alone: pools,
    blocks, the node's slot.
    """
    slots = torch.tensor([*range(end), *(end + step for step in job.draft.path(node))])
    size = pools[0].shape[1]
    count = -(-len(slots) // size)
    alone = []
    for kept in pools:
        own = kept.new_zeros(count * size, *kept.shape[2:])
        own[: len(slots)] = kept[blocks[slots // size], slots % size]
        alone.append(own.view(count, size, *kept.shape[2:]))
    return alone, torch.arange(count), len(slots) - 1
