"""The native kernels as tests call them: on every level, with any number of threads, over KV pools
of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from triptych.engine.storage import KvStorage
from triptych.kv.layout import KvLayout
from triptych_kernels.cpu.build import BuildError, default_cache
from triptych_kernels.cpu.levels import usable_levels
from triptych_kernels.cpu.linear import NativeLinear, linear_ops
from triptych_kernels.cpu.native import Library, load_library
from triptych_kernels.cpu.structs import (
    KV_TYPES,
    AttentionShapeStruct,
    JobStruct,
    KvCacheStruct,
    SkipCountStruct,
    SkippingStruct,
)

_LEFTOVER = 0xFF  # NaN as float32, as bfloat16, and as a scale


@functools.cache
def libraries() -> tuple[Library, ...]:
    """Of every level that runs here, best first. None where nothing can be compiled."""
    found = []
    for level in usable_levels():
        with contextlib.suppress(BuildError, OSError):
            found.append(load_library(level, default_cache()))
    return tuple(found)


@contextlib.contextmanager
def threads(library: Library, count: int) -> Iterator[None]:
    """Ops of this library run on `count` threads meanwhile."""
    change = library.bind("tk_set_threads", None, ctypes.c_int)
    before = library.bind("tk_threads", ctypes.c_int)()
    change(count)
    try:
        yield
    finally:
        change(before)


def apply_linear(
    library: Library, linear: NativeLinear, x: Tensor, out: Tensor, action: int
) -> Tensor:
    """x [M, K] through `linear` and an epilogue (Epilogue::Action) into out [M, stride]."""
    x = x.contiguous()
    ops = linear_ops(library)
    ops.linear(linear.handle, x.data_ptr(), x.shape[0], action, out.data_ptr(), out.shape[1])
    return out


class KvPool:
    """Blocks that are full of what an earlier owner left: NaN, in every type."""

    def __init__(self, library: Library, layout: KvLayout, num_blocks: int) -> None:
        self.layout = layout
        self.memory = torch.full((num_blocks, layout.block_bytes), _LEFTOVER, dtype=torch.uint8)
        self.cache = cache_struct(layout, self.memory.data_ptr())
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._put = library.bind(
            "tk_put_kv", None, pointer, number, pointer, number, pointer, pointer
        )

    def put(
        self, blocks: Tensor, start: int, keys: Tensor, values: Tensor, *, layer: int = 0
    ) -> None:
        """keys, values [N, Hkv, D] at positions [start, start + N) of the sequence in `blocks`."""
        keys, values = keys.float().contiguous(), values.float().contiguous()
        position = torch.arange(start, start + keys.shape[0])
        size = self.layout.block_tokens
        slots = blocks.long()[position // size] * size + position % size
        self._put(
            ctypes.byref(self.cache),
            layer,
            slots.data_ptr(),
            len(slots),
            keys.data_ptr(),
            values.data_ptr(),
        )

    def read(self, blocks: Tensor, count: int, *, layer: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values [count, Hkv, D] of the first positions, as numbers: float32."""
        storage = KvStorage(self.layout, self.memory.numpy())
        views = (storage.keys(layer), storage.values(layer))
        keys, values = (view[blocks.long()].float().flatten(0, 1)[:count] for view in views)
        if self.layout.dtype == "int8":
            scales = self._scales(layer)[blocks.long()]  # [n, 2, Hkv, tokens]
            for number, part in enumerate((keys, values)):
                part *= scales[:, number].transpose(1, 2).flatten(0, 1)[:count, :, None]
        return keys, values

    def _scales(self, layer: int) -> Tensor:
        layout = self.layout
        begin = layer * layout.layer_bytes + 2 * layout.half_bytes
        scales = self.memory[:, begin : (layer + 1) * layout.layer_bytes].contiguous()
        shape = (2, layout.num_kv_heads, layout.block_tokens)
        return scales.view(torch.float32).view(-1, *shape)


def cache_struct(layout: KvLayout, address: int) -> KvCacheStruct:
    return KvCacheStruct(
        address,
        layout.block_bytes,
        layout.layer_bytes,
        layout.num_kv_heads,
        layout.head_dim,
        layout.block_tokens,
        KV_TYPES[layout.dtype],
    )


@dataclass(frozen=True, slots=True)
class Skip:
    """How rows leave out tiles, and what a call reports of it: see Skipping in attention.h."""

    scale: float
    budget: float
    count: SkipCountStruct
    omitted: Tensor  # float32 [R, Hq]

    def struct(self, layer: int) -> SkippingStruct:
        """For a call of one layer. The kernel counts from layer 0 on."""
        count = ctypes.addressof(self.count) - layer * ctypes.sizeof(SkipCountStruct)
        omitted = self.omitted.data_ptr() - layer * self.omitted.nbytes
        counts = ctypes.cast(count, ctypes.POINTER(SkipCountStruct))
        return SkippingStruct(self.scale, self.budget, counts, omitted)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive query rows of one sequence, or with `parents` a tree of drafts: a Job."""

    queries: Tensor  # float32 [R, Hq, D]
    start: int
    blocks: Tensor  # int32
    parents: Sequence[int] | None = None
    skip: Skip | None = None
    bundle: int = 0  # of jobs whose first `shared` positions lie in the same blocks
    shared: int = 0

    def part(self, begin: int, end: int) -> Rows:
        """Rows [begin, end) of a chain."""
        assert self.parents is None
        return Rows(self.queries[begin:end], self.start + begin, self.blocks)

    def skipping(self, scale: float, budget: float = math.inf) -> Rows:
        """The same rows, which leave out tiles: BLASST."""
        shape = self.queries.shape[:2]
        return replace(self, skip=Skip(scale, budget, SkipCountStruct(), torch.full(shape, -1.0)))


def attend(
    library: Library,
    cache: KvCacheStruct,
    jobs: Sequence[Rows],
    *,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    layer: int = 0,
    sinks: Tensor | None = None,
    value_dim: int = 0,
) -> list[Tensor]:
    """One call of the kernel: [R, Hq, D] of every job, D the value_dim if there is one."""
    queries = torch.cat([job.queries for job in jobs])
    out = torch.empty(*queries.shape[:2], value_dim or queries.shape[2])
    parents = [
        None if job.parents is None else torch.tensor(job.parents, dtype=torch.int32)
        for job in jobs
    ]
    structs, row = [], 0
    for job, tree in zip(jobs, parents, strict=True):
        assert job.blocks.dtype == torch.int32 and job.blocks.is_contiguous()
        address = None if tree is None else tree.data_ptr()
        count = job.queries.shape[0]
        struct = JobStruct(row, count, job.start, 0, job.blocks.data_ptr(), address)
        if job.skip is not None:
            struct.skipping = ctypes.pointer(job.skip.struct(layer))
        struct.bundle, struct.shared = job.bundle, job.shared
        structs.append(struct)
        row += count
    sinks_at = None if sinks is None else sinks.data_ptr()
    shape = AttentionShapeStruct(queries.shape[1], scale, softcap, window, value_dim, sinks_at)
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.bind("tk_attend", None, *(pointer, number, pointer, pointer, number, pointer, pointer))(
        ctypes.byref(cache),
        layer,
        ctypes.byref(shape),
        (JobStruct * len(jobs))(*structs),
        len(jobs),
        queries.data_ptr(),
        out.data_ptr(),
    )
    return list(torch.split(out, [job.queries.shape[0] for job in jobs]))
