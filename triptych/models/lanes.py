"""A forward pass whose feed-forward parts run elsewhere.

The rows are cut into micro-batches, one per lane. While one lane's rows are away, the others' are
attended to; whatever came back is taken up again, the oldest first. A row's bits do not depend on
the cut.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from triptych.models.cut import MIN_ROWS, JobSize, Piece, cut_jobs
from triptych.models.seams import DistantExperts
from triptych.models.taps import Tap, tell
from triptych_kernels.cpu.layers import NativeLayers, NativePass
from triptych_kernels.cpu.structs import JobStruct, KvCacheStruct

Tables = Sequence[tuple[Tensor, Tensor]]


@dataclass(slots=True, eq=False)
class Lane:
    """One micro-batch on its way through the layers."""

    number: int
    under_way: NativePass
    jobs: ctypes.Array[JobStruct]  # kept for the pass
    follows: bool  # sees KV that the lane before it writes
    normed: Tensor  # [M, H] float32, what is sent
    ids: Tensor | None  # [M, k] int32, of mixtures
    weights: Tensor | None  # [M, k] float32
    shared: Tensor | None  # [M, H] float32, what the shared expert adds
    attended: int = 0  # layers whose attention is done
    done: int = 0  # layers that are complete

    @property
    def away(self) -> bool:
        return self.attended > self.done


@dataclass(frozen=True, slots=True)
class LanedLayers:
    """Layers of a model whose feed-forward parts run elsewhere."""

    layers: NativeLayers
    experts: DistantExperts
    distant: Sequence[bool]  # per layer: its feed-forward part runs elsewhere
    top_k: int  # of the mixtures; 0: all layers are dense
    shared: bool  # mixtures have an expert that every row goes to

    def run(
        self,
        hidden: Tensor,
        jobs: ctypes.Array[JobStruct],
        cache: KvCacheStruct,
        tables: Tables,
        taps: Sequence[Tap],
    ) -> None:
        """hidden [M, H] float32 in place. Jobs' rows stand one behind the other."""
        began = time.perf_counter()
        lanes = self._open(hidden, jobs, cache, tables)
        waited = LanedPass(self, lanes, hidden, taps).run()
        took = time.perf_counter() - began
        self.experts.stepped(len(hidden), len(lanes), took - waited, took)

    def _open(
        self,
        hidden: Tensor,
        jobs: ctypes.Array[JobStruct],
        cache: KvCacheStruct,
        tables: Tables,
    ) -> list[Lane]:
        runs = cut_jobs([_size(job) for job in jobs], self.experts.num_lanes(len(hidden)))
        ends = list(accumulate(sum(piece.end - piece.first for piece in run) for run in runs))
        lanes = []
        for number, (run, first, end) in enumerate(zip(runs, [0, *ends], ends, strict=False)):
            own, rows = _own_jobs(jobs, run), hidden[first:end]
            under_way = self.layers.start(rows, own, cache, tables)
            lanes.append(self._lane(number, under_way, own, rows, follows=run[0].first > 0))
        return lanes

    def _lane(
        self,
        number: int,
        under_way: NativePass,
        jobs: ctypes.Array[JobStruct],
        hidden: Tensor,
        *,
        follows: bool,
    ) -> Lane:
        shape = len(hidden), self.top_k
        return Lane(
            number,
            under_way,
            jobs,
            follows,
            normed=torch.empty_like(hidden),
            ids=torch.empty(shape, dtype=torch.int32) if self.top_k else None,
            weights=torch.empty(shape) if self.top_k else None,
            shared=torch.empty_like(hidden) if self.shared else None,
        )


class LanedPass:
    """One step's lanes, from the first layer to the last."""

    def __init__(
        self, of: LanedLayers, lanes: Sequence[Lane], hidden: Tensor, taps: Sequence[Tap]
    ) -> None:
        self._of = of
        self._lanes = lanes
        self._hidden = hidden
        self._taps = taps
        self._num_layers = len(of.layers)
        # Layers behind which somebody looks at all rows: no lane goes on before all are there.
        self._stops = sorted(
            {layer for tap in taps for layer in tap.layers if layer < self._num_layers}
        )

    def run(self) -> float:
        """Seconds waited for rows to come back."""
        waited = 0.0
        self._proceed()
        while any(lane.away for lane in self._lanes):
            asked = time.perf_counter()
            returned = self._of.experts.returned()
            waited += time.perf_counter() - asked
            for lane in sorted((self._lanes[n] for n in returned), key=lambda lane: lane.done):
                self._finish(lane)
                self._proceed()
        return waited

    def _proceed(self) -> None:
        """Starts whatever may start."""
        going = True
        while going:
            ready = [lane for lane in self._lanes if self._may_start(lane)]
            for lane in ready:
                self._start(lane)
            going = self._pass_stops() or bool(ready)

    def _may_start(self, lane: Lane) -> bool:
        if lane.away or lane.done == self._num_layers:
            return False
        if lane.follows and self._lanes[lane.number - 1].attended <= lane.done:
            return False
        return not self._stops or lane.done <= self._stops[0]

    def _start(self, lane: Lane) -> None:
        """The lane's next layer, up to where its rows leave; a layer that is here, whole."""
        of, layer = self._of, lane.attended
        lane.attended += 1
        if not of.distant[layer]:
            of.layers.run(layer, layer + 1, lane.under_way)
            lane.done += 1
            return
        of.layers.attention_half(layer, lane.under_way)
        of.layers.ffn_front(layer, lane.under_way, lane.normed, lane.ids, lane.weights)
        of.experts.send(lane.number, layer, lane.normed, lane.ids)
        if lane.shared is not None:  # while they travel
            of.layers.shared(layer, lane.normed, lane.shared)

    def _finish(self, lane: Lane) -> None:
        """What came back joins the residual stream."""
        of = self._of
        cells = of.experts.cells(lane.number)
        of.layers.ffn_back(lane.done, lane.under_way, cells, lane.weights, lane.shared)
        of.experts.end(lane.number)
        lane.done += 1

    def _pass_stops(self) -> bool:
        """Tells the taps of a layer that all lanes have completed; False: there is none."""
        if not self._stops or any(lane.done <= self._stops[0] for lane in self._lanes):
            return False
        tell(self._taps, self._stops.pop(0), self._hidden)
        return True


def _size(job: JobStruct) -> JobSize:
    """Trees stay whole, and so do scored rows, which the last piece must hold all of."""
    whole = bool(job.parents) or (bool(job.page_scores) and job.scored_rows > MIN_ROWS)
    return JobSize(job.rows, job.start + job.rows, whole)


def _own_jobs(jobs: ctypes.Array[JobStruct], run: Sequence[Piece]) -> ctypes.Array[JobStruct]:
    """The jobs of one lane, whose first row is 0."""
    own, row = (JobStruct * len(run))(), 0
    for place, (index, first, end) in enumerate(run):
        own[place] = jobs[index]
        job = own[place]
        job.first_row, job.rows, job.start = row, end - first, jobs[index].start + first
        if end < jobs[index].rows:  # only the job's last rows are asked for their scores
            job.page_scores, job.scored_rows = None, 0
        row += end - first
    return own
