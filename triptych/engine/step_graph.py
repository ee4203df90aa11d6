"""Decode steps of fixed sizes, recorded once and replayed: CUDA graphs, and their seam.

A step of few rows launches hundreds of small kernels, and launching takes longer than they run. A
CUDA graph launches all of them at once, with the shapes and addresses that it was recorded with. So
a step is filled up to a bucket. Rows that pad it write nowhere (slot −1) and see nothing (length
0), and no kernel's tile depends on the batch, so padding changes no bit.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triptych.engine.rows import RowJob
from triptych.engine.triton_bundles import Bundle, SharedRoom
from triptych.engine.triton_rows import slots_of
from triptych_kernels.triton.attention import SPLIT_TOKENS
from triptych_kernels.triton.shared_splits import SharedSplits

MAX_ROWS = 64  # of a bucket, a tile of a matrix product; larger steps are launched kernel by kernel
MIN_TOKENS = SPLIT_TOKENS  # of a bucket


class Bucket(NamedTuple):
    """Sizes of a decode step: its rows, the tokens of the longest sequence, and how many bundles of
    sequences read their first splits together.
    """

    rows: int
    tokens: int
    bundles: int = 0


def bucket_for(rows: int, tokens: int, max_tokens: int, bundles: int = 0) -> Bucket | None:
    """The smallest that holds `rows` sequences of up to `tokens` tokens, powers of two, so that
    there are few; None: no bucket does. Pure.
    """
    if not 0 < rows <= MAX_ROWS:
        return None
    whole = max(MIN_TOKENS, 1 << (tokens - 1).bit_length())
    return Bucket(
        1 << (rows - 1).bit_length(),
        min(whole, max(max_tokens, MIN_TOKENS)),
        1 << (bundles - 1).bit_length() if bundles else 0,
    )


def is_plain_decode(jobs: Seq[RowJob]) -> bool:
    """Every sequence computes one row of dense attention, and none drafts. Pure."""
    return all(
        job.num_rows == 1 and not job.first_block and job.sequence.sparse is None for job in jobs
    )


class DecodeBuffers:
    """What a recorded step reads, always in the same memory. Begins as nothing but padding."""

    def __init__(self, bucket: Bucket, block_tokens: int, device: torch.device) -> None:
        rows, pages = bucket.rows, -(-bucket.tokens // block_tokens)
        self._block_tokens = block_tokens
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.slots = torch.full((rows,), -1, dtype=torch.int64, device=device)
        self.tables = torch.zeros(rows, pages, dtype=torch.int32, device=device)
        self.lengths = torch.zeros(rows, dtype=torch.int32, device=device)
        self.row_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._shared = SharedRoom(
            rows,
            bucket.bundles,
            pages,
            device,
            max_rows=rows,
            max_splits=-(-bucket.tokens // SPLIT_TOKENS),
        )

    @property
    def shared(self) -> SharedSplits:
        return self._shared.splits

    def fill(self, jobs: Seq[RowJob], bundles: Seq[Bundle] = ()) -> None:
        """Jobs of one row each, in the order of their bundles, and padding behind them."""
        missing = len(self.tokens) - len(jobs)
        ends = [job.end for job in jobs]
        self._put(self.tokens, [job.tokens[0] for job in jobs] + [0] * missing)
        self._put(self.positions, [end - 1 for end in ends] + [0] * missing)
        self._put(self.slots, slots_of(jobs, self._block_tokens) + [-1] * missing)
        self._put(self.lengths, ends + [0] * missing)
        tables = torch.zeros(self.tables.shape, dtype=torch.int32)
        for row, job in enumerate(jobs):
            blocks = job.sequence.blocks[: -(-job.end // self._block_tokens)]
            tables[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self.tables.copy_(tables)
        self._shared.fill(bundles, tables, range(len(jobs) + 1))

    def _put(self, to: Tensor, values: list[int]) -> None:
        to.copy_(torch.tensor(values, dtype=to.dtype))


class StepGraph(Protocol):
    """A recorded step."""

    def __call__(self) -> Tensor:
        """Computes from what the buffers hold; the result is valid until the next call."""


class Eager:
    """No recording: the same calls again. On the CPU, or where graphs are off."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self._step = step

    def __call__(self) -> Tensor:
        return self._step()


class CudaGraph:
    """Recorded at once: the buffers must hold padding alone, since a recording runs the step."""

    def __init__(self, step: Callable[[], Tensor], pool: Any = None) -> None:
        """`pool`: a `graph_pool_handle`, for graphs that never run at the same time."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # compiles kernels, which must not happen while recording
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._result = step()

    def __call__(self) -> Tensor:
        self._graph.replay()
        return self._result
