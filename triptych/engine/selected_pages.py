"""What rows that choose pages need to know, and what of it is kept from step to step.

Bounds of a page's keys are made once, when a row first has to choose and the page is complete, and
kept beside the KV pool while their sequence keeps its blocks. So a step reads them, a sixteenth of
the keys in float32, and the pages that it chooses.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from triptych.engine.rows import RowJob
from triptych.engine.sequence import Sequence
from triptych.kv.layout import KvLayout
from triptych.request import PAGE_TOKENS, PageBudget, TileCount, pages_seen
from triptych_kernels.cpu.structs import JobStruct, PageChoiceStruct

_MULTIPLE = 32  # of the room for pages: products read whole parts of a tile


def pages_kept(job: RowJob) -> list[int] | None:
    """How many pages each of a job's rows reads, 0 where it reads all; None: they all do. Pure."""
    first = job.sequence.first_choosing
    if first is None or job.first_block or job.end + len(job.draft) <= first:
        return None
    budget = _budget(job.sequence)
    kept = [0 if position < first else _chosen(budget, position) for position in job.positions]
    return kept if any(kept) else None


def count_pages(job: RowJob, kept: Seq[int], times: int) -> TileCount:
    """Of so many layers and KV heads. Pure."""
    rows = zip(job.positions, kept, strict=True)
    seen = sum(pages_seen(position) for position, count in rows if count)
    return TileCount(pages=seen * times, pages_read=sum(kept) * times)


def _chosen(budget: PageBudget, position: int) -> int:
    kept = budget.kept(position)
    return 0 if kept == pages_seen(position) else kept


def _budget(sequence: Sequence) -> PageBudget:
    assert sequence.sparse is not None and sequence.sparse.pages is not None
    return sequence.sparse.pages


@dataclass(slots=True)
class PageBounds:
    """Of one sequence."""

    blocks: list[int]  # where its KV lies; another list: it was computed anew
    numbers: NDArray[np.float32]  # [L, Hkv, pages, 2, D], the largest, then the smallest
    known: int = 0  # pages

    def make_room(self, pages: int) -> None:
        had = self.numbers.shape[2]
        if pages <= had:
            return
        layers, heads, _, *rest = self.numbers.shape
        room = -(-max(pages, had * 3 // 2) // _MULTIPLE) * _MULTIPLE
        grown = np.empty((layers, heads, room, *rest), np.float32)
        grown[:, :, : self.known] = self.numbers[:, :, : self.known]
        self.numbers = grown


class SelectedPages:
    """Of one runner."""

    def __init__(self, layout: KvLayout, num_choosing: int) -> None:
        """`num_choosing`: layers without a window."""
        self._layout = layout
        self._choices = num_choosing * layout.num_kv_heads  # of a row
        self._bounds: WeakKeyDictionary[Sequence, PageBounds] = WeakKeyDictionary()

    def prepare(self, jobs: Seq[RowJob]) -> PageChoices:
        """For one forward."""
        found = [(number, job, pages_kept(job)) for number, job in enumerate(jobs)]
        return PageChoices(
            [
                PageChoice(number, job, array("i", kept), self._bounds_for(job))
                for number, job, kept in found
                if kept is not None
            ],
            self._choices,
        )

    def _bounds_for(self, job: RowJob) -> PageBounds:
        bounds = self._bounds.get(job.sequence)
        if bounds is None or bounds.blocks is not job.sequence.blocks:
            shape = self._layout.num_layers, self._layout.num_kv_heads, 0, 2, self._layout.head_dim
            bounds = PageBounds(job.sequence.blocks, np.empty(shape, np.float32))
            self._bounds[job.sequence] = bounds
        bounds.known = min(bounds.known, job.start // PAGE_TOKENS)  # not what is written anew
        bounds.make_room(-(-(job.end + len(job.draft)) // PAGE_TOKENS))
        return bounds


@dataclass(slots=True)
class PageChoice:
    """Of one job, `number` of its forward."""

    number: int
    job: RowJob
    kept: array[int]  # by row
    bounds: PageBounds

    def struct(self) -> PageChoiceStruct:
        """Must not outlive this object."""
        numbers = self.bounds.numbers
        address, _ = self.kept.buffer_info()
        return PageChoiceStruct(
            self.job.start, self.bounds.known, numbers.shape[2], address, numbers.ctypes.data
        )

    def done(self, times: int) -> None:
        """What lies before a draft is final; nodes of a tree are not where they will be."""
        final = self.job.end if self.job.parents is None else self.job.start
        self.bounds.known = final // PAGE_TOKENS
        self.job.sequence.tiles.add(count_pages(self.job, self.kept, times))


class PageChoices:
    """Those of one forward. Must outlive it; `done` afterwards."""

    def __init__(self, choices: Seq[PageChoice], times: int) -> None:
        self._choices = choices
        self._times = times
        self._structs = [choice.struct() for choice in choices]

    def put(self, structs: ctypes.Array[JobStruct]) -> ctypes.Array[JobStruct]:
        for choice, struct in zip(self._choices, self._structs, strict=True):
            structs[choice.number].pages = ctypes.pointer(struct)
        return structs

    def done(self) -> None:
        for choice in self._choices:
            choice.done(self._times)
