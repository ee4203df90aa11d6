"""Row jobs on Triton's kernels, in a device's memory. Interpreted and compiled, not run on a GPU.

Decode steps are filled up to a bucket and recorded (step_graph.py); all else, chunks of prompts,
drafts, sparse attention and steps that somebody watches, is launched kernel by kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from triptych.engine.device_kv import DeviceKv, full_blocks
from triptych.engine.pages import PageRow, PageScores, ScoreWishes
from triptych.engine.rows import RowJob, wanted_rows
from triptych.engine.step_graph import (
    Bucket,
    CudaGraph,
    DecodeBuffers,
    Eager,
    StepGraph,
    bucket_for,
    is_plain_decode,
)
from triptych.engine.triton_bundles import find_bundles
from triptych.engine.triton_pages import PagesView
from triptych.engine.triton_rows import BatchView, Part, Scored, parts_of, slots_of
from triptych.models.model import Model
from triptych.models.taps import LayerTap, StateTap, Tap
from triptych.models.triton_model import TritonModel


class _Recorded(NamedTuple):
    buffers: DecodeBuffers
    graph: StepGraph


class TritonRunner:
    """See Runner. Hidden states and logits are on the device."""

    def __init__(self, model: Model, kv: DeviceKv, *, graphs: bool = True) -> None:
        """`graphs` False: CUDA graphs are off. Changes no bit."""
        self.model = model
        self.device = kv.device
        self._triton = TritonModel(model)
        assert self._triton.device == kv.device, "weights and KV are on one device"
        self.kv = kv
        self._wishes = ScoreWishes()
        self._records = graphs and kv.device.type == "cuda"
        self._recorded: dict[Bucket, _Recorded] = {}
        self._graph_pool = torch.cuda.graph_pool_handle() if self._records else None

    @torch.inference_mode()
    def forward(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        wanted = wanted_rows(jobs)
        hidden = self._decode(jobs) if not taps else None
        if hidden is None:
            hidden = self._run(jobs, taps)
        if len(wanted) != len(hidden):
            hidden = hidden[torch.tensor(wanted, dtype=torch.int64, device=self.device)]
        return self._triton.final_norm(hidden)

    @torch.inference_mode()
    def forward_all(self, jobs: Sequence[RowJob], taps: Sequence[Tap] = ()) -> Tensor:
        return self._triton.final_norm(self._run(jobs, taps))

    @torch.inference_mode()
    def forward_hidden(self, jobs: Sequence[RowJob], hidden: Tensor) -> Tensor:
        return self._layers(jobs, hidden.to(self.device, torch.float32, copy=True), ())

    @torch.inference_mode()
    def final_norm(self, hidden: Tensor) -> Tensor:
        return self._triton.final_norm(hidden.to(self.device))

    def score_pages(self, scores: PageScores) -> None:
        self._wishes.add(scores)

    @torch.inference_mode()
    def forward_pages(self, rows: Sequence[PageRow]) -> Tensor:
        hidden = self._triton.embed(self._whole([row.token for row in rows]))
        positions = self._whole([row.position for row in rows])
        self._triton.run(hidden, positions, PagesView(self.kv, rows), self.kv.dtype)
        return self._triton.final_norm(hidden)

    @torch.inference_mode()
    def move_kv(self, blocks: Sequence[int], moves: Sequence[tuple[int, int]]) -> None:
        self.kv.move(blocks, moves)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return self._triton.logits(hidden.to(self.device))

    def _run(self, jobs: Sequence[RowJob], taps: Sequence[Tap]) -> Tensor:
        """The residual stream behind the last layer, [M, H]."""
        hidden = self._triton.embed(self._whole([token for job in jobs for token in job.tokens]))
        return self._layers(jobs, hidden, taps)

    def _layers(self, jobs: Sequence[RowJob], hidden: Tensor, taps: Sequence[Tap]) -> Tensor:
        self.kv.bring(jobs)
        size = self.kv.layout.block_tokens
        view = BatchView(
            self.kv,
            self._whole(slots_of(jobs, size)),
            parts_of(jobs, size, self.device),
            self._scored(jobs),
        )
        down = _Down(self.kv, jobs, taps)
        positions = self._whole([position for job in jobs for position in job.positions])
        self._triton.run(hidden, positions, view, self.kv.dtype, [*down.taps, *taps])
        down.rest()
        view.count_tiles()
        return hidden

    def _decode(self, jobs: Sequence[RowJob]) -> Tensor | None:
        """A recorded step; None where there is none for such jobs."""
        if not is_plain_decode(jobs) or self._wishes.waiting:
            return None
        longest = max(job.end for job in jobs)
        known = [job.start for job in jobs]
        tables = [job.sequence.blocks for job in jobs]
        order, bundles = find_bundles(tables, known, self.kv.layout.block_tokens)
        bucket = bucket_for(len(jobs), longest, self.model.config.max_model_len, len(bundles))
        if bucket is None:
            return None
        if bucket not in self._recorded:
            self._recorded[bucket] = self._record(bucket)
        buffers, graph = self._recorded[bucket]
        self.kv.bring(jobs)
        buffers.fill([jobs[number] for number in order], bundles)
        places = sorted(range(len(jobs)), key=order.__getitem__)  # of each job, in that order
        hidden = graph()[torch.tensor(places, device=self.device)]
        self.kv.copy_down(full_blocks(jobs, self.kv.layout.block_tokens, closing=False))
        return hidden

    def _record(self, bucket: Bucket) -> _Recorded:
        buffers = DecodeBuffers(bucket, self.kv.layout.block_tokens, self.device)
        of = (buffers.row_starts, buffers.tables, buffers.lengths)
        part = Part("few", None, *of, max_rows=1, max_length=bucket.tokens, shared=buffers.shared)
        view = BatchView(self.kv, buffers.slots, [part])

        def step() -> Tensor:
            hidden = self._triton.embed(buffers.tokens)
            self._triton.run(hidden, buffers.positions, view, self.kv.dtype)
            return hidden

        if not self._records:
            return _Recorded(buffers, Eager(step))
        return _Recorded(buffers, CudaGraph(step, self._graph_pool))

    def _scored(self, jobs: Sequence[RowJob]) -> list[Scored]:
        found, row = [], 0
        for job, wish in zip(jobs, self._wishes.take(jobs), strict=True):
            row += job.num_rows
            if wish is None:
                continue
            length = job.end + len(job.draft)
            found.append(
                Scored(
                    slice(row - job.num_wanted, row),
                    self._whole([0, job.num_wanted]).int(),
                    self._whole(job.seen_blocks).int()[None],
                    self._whole([length]).int(),
                    length,
                    torch.from_numpy(wish.make_room(job, self.kv.layout)),
                )
            )
        return found

    def _whole(self, values: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.int64)).to(self.device)


class _Down:
    """Brings what a forward makes final to the mirror: before a tap is told of a layer, and at the
    end.
    """

    def __init__(self, kv: DeviceKv, jobs: Sequence[RowJob], taps: Sequence[Tap]) -> None:
        told = [tap for tap in taps if not isinstance(tap, StateTap)]
        self._kv = kv
        self._blocks = full_blocks(jobs, kv.layout.block_tokens, closing=bool(told))
        self._next = 0  # layer that is not there yet
        layers = sorted({layer for tap in told for layer in tap.layers})
        self.taps: list[Tap] = [LayerTap(layers, self._after)] if layers else []

    def rest(self) -> None:
        if self._next < self._kv.layout.num_layers:
            self._after(self._kv.layout.num_layers - 1, None)

    def _after(self, layer: int, _: Tensor | None) -> None:
        self._kv.copy_down(self._blocks, self._next, layer + 1)
        self._next = layer + 1
