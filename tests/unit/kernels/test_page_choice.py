"""Which pages rows of an answer choose: exactly the best by Quest's bounds, however rows come."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import libraries
from triptych_kernels import choose_pages
from triptych_kernels.cpu.structs import AttentionShapeStruct, JobStruct, PageChoiceStruct

LIBRARIES = libraries()
native = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

PAGE, LENGTH = 32, 1230


def worth_of(query: Tensor, keys: Tensor) -> list[float]:
    """query [G, D], keys [n, D] → what each whole page is worth, as the paper says."""
    return [
        float(torch.maximum(query * page.amin(0), query * page.amax(0)).sum(-1).max())
        for page in keys.split(PAGE)
        if len(page) == PAGE
    ]


def definition(query: Tensor, keys: Tensor, kept: int) -> set[int]:
    """Positions: of the first page, the row's own and the one before, and of the best others."""
    own = (len(keys) - 1) // PAGE
    always = {0, own - 1, own}
    worth = worth_of(query, keys)
    others = sorted(set(range(own + 1)) - always, key=lambda page: (-worth[page], page))
    pages = always | set(others[: kept - len(always)])
    return {at for at in range(len(keys)) if at // PAGE in pages}


def in_torch(
    keys: Tensor, queries: Tensor, start: int, kept: Sequence[int]
) -> list[list[set[int]]]:
    """keys [n, Hkv, D] in one block; queries [R, Hq, D] → positions by row and KV head."""
    found = choose_pages(queries, keys[None], torch.tensor([0]), start, kept, PAGE)
    return [[set(head.nonzero().flatten().tolist()) for head in row] for row in found]


class Native:
    """The kernel, and the bounds that it keeps from call to call."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        layout = prompt.pool.layout
        self.capacity = -(-LENGTH // (32 * PAGE)) * 32
        shape = layout.num_kv_heads, self.capacity, 2, layout.head_dim
        self.bounds = np.full(shape, np.nan, np.float32)
        self.known = 0

    def __call__(
        self, queries: Tensor, start: int, kept: Sequence[int], parents: Sequence[int] | None = None
    ) -> list[list[set[int]]]:
        layout, rows = self.prompt.pool.layout, len(queries)
        words = -(-(start + rows) // 64)
        out = np.zeros((rows, layout.num_kv_heads, words), np.uint64)
        counts = np.array(kept, np.int32)
        tree = None if parents is None else np.array(parents, np.int32)
        pages = PageChoiceStruct(
            start, self.known, self.capacity, counts.ctypes.data, self.bounds.ctypes.data
        )
        address = None if tree is None else tree.ctypes.data
        job = JobStruct(0, rows, start, 0, self.prompt.blocks.data_ptr(), address)
        job.pages = ctypes.pointer(pages)
        pointer, number = ctypes.c_void_p, ctypes.c_int
        choose = self.prompt.library.bind("tk_choose_pages", None, pointer, number, *[pointer] * 4)
        choose(
            ctypes.byref(self.prompt.pool.cache),
            0,
            ctypes.byref(AttentionShapeStruct(queries.shape[1], 1.0)),
            ctypes.byref(job),
            queries.contiguous().data_ptr(),
            out.ctypes.data,
        )
        bits = np.unpackbits(out.view(np.uint8), axis=-1, bitorder="little")
        return [[set(np.flatnonzero(head).tolist()) for head in row] for row in bits]


@pytest.mark.parametrize("group", [1, 3, 20])
def test_torch_chooses_what_the_definition_says(group: int) -> None:
    source = torch.Generator().manual_seed(group)
    keys = torch.randn(LENGTH, 2, 16, generator=source)
    queries = torch.randn(4, 2 * group, 16, generator=source)
    starts = LENGTH - 4
    found = in_torch(keys, queries, starts, [6, 0, 9, 37])
    for row, kept in ((0, 6), (2, 9), (3, 37)):
        for head in range(2):
            of_head = queries[row, head * group : (head + 1) * group]
            seen = keys[: starts + row + 1, head]
            assert found[row][head] == definition(of_head, seen, kept)
    assert found[1] == [set(range(starts + 2))] * 2


@native
@pytest.mark.parametrize(
    ("dtype", "block_tokens"),
    [("float32", 32), ("float32", 16), ("bfloat16", 24), ("bfloat16", 128), ("int8", 16)],
)
@pytest.mark.parametrize("group", [1, 3, 20])
def test_the_kernel_chooses_what_torch_chooses(dtype: str, block_tokens: int, group: int) -> None:
    prompt = Prompt(LIBRARIES[0], dtype, 32, group, block_tokens, LENGTH).put()
    keys, _ = prompt.pool.read(prompt.blocks, LENGTH)
    kept = [7 + row % 5 if row % 4 else 0 for row in range(40)]
    start = LENGTH - len(kept)
    queries = prompt.queries[start:]
    wanted = in_torch(keys, queries, start, kept)
    assert Native(prompt)(queries, start, kept) == wanted
    alone = Native(prompt)
    for row, count in enumerate(kept):
        assert alone(queries[row : row + 1], start + row, [count]) == wanted[row : row + 1]
        alone.known = (start + row + 1) // PAGE


@native
def test_a_node_of_a_tree_chooses_as_its_path_would_alone() -> None:
    """Two paths of 100 tokens each, one beside the other: they complete pages of their own."""
    base, steps = LENGTH - 200, 100
    prompt = Prompt(LIBRARIES[0], "float32", 32, 3, 16, LENGTH).put()
    parents = [-1, *range(steps - 1), -1, *range(steps, 2 * steps - 1)]
    found = Native(prompt)(prompt.queries[base:], base, [6] * 200, parents)
    keys, _ = prompt.pool.read(prompt.blocks, LENGTH)
    for first in (base, base + steps):
        path = torch.cat([keys[:base], keys[first : first + steps]])
        wanted = in_torch(path, prompt.queries[first : first + steps], base, [6] * steps)
        for step, row in enumerate(wanted):
            slots = [{at if at < base else at - base + first for at in head} for head in row]
            assert found[first - base + step] == slots


@native
def test_of_equal_ones_the_first_are_chosen_and_what_is_no_number_always() -> None:
    prompt = Prompt(LIBRARIES[0], "float32", 16, 2, 32, LENGTH)
    prompt.keys.fill_(0.5)
    keys = prompt.keys
    wanted = {*range(96), *range(1184, LENGTH)}
    query = prompt.queries[-1:]
    assert Native(prompt.put())(query, LENGTH - 1, [5]) == [[wanted] * 2]
    assert in_torch(keys, query, LENGTH - 1, [5]) == [[wanted] * 2]
    keys[700, 1, 3] = torch.nan
    broken = {*range(64), *range(672, 704), *range(1184, LENGTH)}
    for found in (
        Native(prompt.put())(query, LENGTH - 1, [5]),
        in_torch(keys, query, LENGTH - 1, [5]),
    ):
        assert found == [[wanted, broken]]


def test_chunks_change_no_choice_in_torch() -> None:
    source = torch.Generator().manual_seed(5)
    keys = torch.randn(LENGTH, 2, 16, generator=source)
    queries = torch.randn(60, 4, 16, generator=source)
    start = LENGTH - 60
    whole = in_torch(keys, queries, start, [8] * 60)
    cuts = [0, 1, 17, 50, 60]
    parts = [
        in_torch(keys[: start + end], queries[begin:end], start + begin, [8] * (end - begin))
        for begin, end in itertools.pairwise(cuts)
    ]
    assert [row for part in parts for row in part] == whole
