"""Paged attention of the native kernels: right, and a row's bits are its own."""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.testing.native_kernels import (
    KvPool,
    Rows,
    attend,
    cache_struct,
    libraries,
    threads,
)

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
DIMS = [16, 24, 32, 64, 80, 96, 128, 256]
GROUPS = [1, 3, 4, 7, 8]
BLOCK_TOKENS = [8, 16, 32, 64, 128]
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 4096]
QUERY_ROWS = [1, 2, 5, 16, 17, 33]
VISIBLE = [(0, 0.0), (40, 0.0), (0, 3.0), (200, 2.0), (1, 0.0)]  # window, softcap
TREE = [-1, 0, 1, 0, 3, -1, 5, 2, 7, 7, 4]  # each draft's parent


class Prompt:
    """A sequence in a pool whose blocks stand in no order, and queries for its last positions."""

    def __init__(
        self,
        dtype: str,
        head_dim: int,
        group: int,
        block_tokens: int,
        length: int,
        *,
        kv_heads: int = 2,
        library: int = 0,
    ) -> None:
        self.library = LIBRARIES[library]
        self.length = length
        layout = KvLayout(1, kv_heads, head_dim, block_tokens, dtype)
        count = layout.blocks_for(length)
        source = torch.Generator().manual_seed(length)
        shape = (length, kv_heads, head_dim)
        self.keys, self.values = torch.randn(2, *shape, generator=source)
        self.queries = torch.randn(length, kv_heads * group, head_dim, generator=source)
        self.pool = KvPool(self.library, layout, count + 3)
        self.blocks = torch.randperm(count + 3, generator=source)[:count].int()

    def put(self, begin: int = 0, end: int | None = None) -> Prompt:
        part = slice(begin, end)
        self.pool.put(self.blocks, begin, self.keys[part], self.values[part])
        return self

    def rows(self, begin: int, end: int) -> Rows:
        return Rows(self.queries[begin:end], begin, self.blocks)

    def attend(self, *jobs: Rows, window: int = 0, softcap: float = 0.0) -> list[Tensor]:
        scale = self.pool.layout.head_dim**-0.5
        cache = self.pool.cache
        return attend(self.library, cache, jobs, scale=scale, window=window, softcap=softcap)

    def exact(self, begin: int, end: int, window: int, softcap: float) -> Tensor:
        """Rows [begin, end) in float64, of what the cache holds."""
        keys, values = (part.double() for part in self.pool.read(self.blocks, end))
        queries = self.queries[begin:end]
        if self.pool.layout.dtype != "float32":
            queries = queries.bfloat16()
        rows, heads, dim = queries.shape
        queries = queries.double().view(rows, keys.shape[1], -1, dim)
        scores = torch.einsum("rhgd,nhd->rhgn", queries, keys) * dim**-0.5
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        back = torch.arange(begin, end)[:, None] - torch.arange(end)
        hidden = (back < 0) | (back >= window if window else back < 0)
        scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        mixed = torch.einsum("rhgn,nhd->rhgd", scores.softmax(-1), values)
        return mixed.reshape(rows, heads, dim)


def shapes() -> list[tuple[str, int, int, int]]:
    """Every dtype with every head size; groups and block sizes in turn."""
    pairs = enumerate(itertools.product(DTYPES, DIMS))
    groups, tokens = itertools.cycle(GROUPS), itertools.cycle([16, 128, 32, 8, 64, 32])
    return [(dtype, dim, next(groups), next(tokens)) for _, (dtype, dim) in pairs]


def assert_close(found: Tensor, exact: Tensor, dtype: str) -> None:
    """bfloat16 weights have 8 bits: errors are relative to the values that they weigh."""
    rtol, atol = (2e-5, 2e-6) if dtype == "float32" else (1e-2, 1e-2)
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", shapes(), ids=str)
def test_attention_is_what_float64_says(shape: tuple[str, int, int, int]) -> None:
    prompt = Prompt(*shape, length=max(LENGTHS)).put()
    for number, length in enumerate(LENGTHS):
        begin = max(0, length - QUERY_ROWS[(number + shape[1] // 8) % len(QUERY_ROWS)])
        window, softcap = VISIBLE[number % len(VISIBLE)]
        with threads(prompt.library, 1 + number % 2):
            (found,) = prompt.attend(prompt.rows(begin, length), window=window, softcap=softcap)
        assert_close(found, prompt.exact(begin, length, window, softcap), shape[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", range(len(LIBRARIES)))
def test_every_cpu_attends_alike(library: int, dtype: str) -> None:
    for dim, (window, softcap) in zip([24, 64, 128], VISIBLE, strict=False):
        prompt = Prompt(dtype, dim, 3, 32, 300, library=library).put()
        (found,) = prompt.attend(prompt.rows(267, 300), window=window, softcap=softcap)
        assert_close(found, prompt.exact(267, 300, window, softcap), dtype)


@pytest.mark.parametrize("visible", VISIBLE, ids=str)
@pytest.mark.parametrize("shape", shapes()[::2], ids=str)
def test_a_row_has_the_same_bits_alone_in_any_chunk_and_on_any_threads(
    shape: tuple[str, int, int, int], visible: tuple[int, float]
) -> None:
    window, softcap = visible
    prompt = Prompt(*shape, length=1200).put()
    for end, rows in ((33, 33), (129, 17), (300, 300), (1030, 33), (1200, 150)):
        begin = end - rows
        (whole,) = prompt.attend(prompt.rows(begin, end), window=window, softcap=softcap)
        cuts = {(0, 1), (rows - 1, rows), (5, 7), (rows // 2, rows), (0, rows // 2 + 1)}
        for number, (first, last) in enumerate(sorted(cuts)):
            job = prompt.rows(begin + first, begin + last)
            with threads(prompt.library, 1 + number % 3):
                (part,) = prompt.attend(job, window=window, softcap=softcap)
            assert torch.equal(part, whole[first:last]), f"[{first}, {last}) of {rows} to {end}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_has_the_same_bits_while_its_cache_fills(dtype: str) -> None:
    """What lies behind a chunk, leftovers or later positions, does not show."""
    for block_tokens in BLOCK_TOKENS:
        prompt = Prompt(dtype, 32, 3, block_tokens, 333)
        chunks = list(itertools.pairwise([0, 1, 16, 40, 64, 65, 130, 333]))
        found = [prompt.put(a, b).attend(prompt.rows(a, b))[0] for a, b in chunks]
        assert torch.equal(torch.cat(found), prompt.attend(prompt.rows(0, 333))[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_block_sizes_change_no_bit(dtype: str) -> None:
    found = []
    for block_tokens in BLOCK_TOKENS:
        prompt = Prompt(dtype, 64, 4, block_tokens, 1100).put()
        found.append(prompt.attend(prompt.rows(1050, 1100), window=1024)[0])
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jobs_of_every_kind_share_a_call(dtype: str, head_dim: int) -> None:
    prompt = Prompt(dtype, head_dim, 3, 32, 2100).put()
    tree = Rows(prompt.queries[140:151], 140, prompt.blocks, TREE)
    jobs = [
        prompt.rows(0, 100),
        prompt.rows(2099, 2100),
        tree,
        prompt.rows(16, 17),
        prompt.rows(1000, 1033),
        prompt.rows(0, 1),
    ]
    for window in (0, 50):
        alone = [prompt.attend(job, window=window)[0] for job in jobs]
        for order in (range(6), (5, 2, 0, 1, 4, 3)):
            for count in (1, 2):
                with threads(prompt.library, count):
                    found = prompt.attend(*(jobs[i] for i in order), window=window)
                assert all(torch.equal(f, alone[i]) for f, i in zip(found, order, strict=True))


def test_no_jobs_are_no_work() -> None:
    prompt = Prompt("float32", 32, 1, 32, 40).put()
    (found,) = prompt.attend(prompt.rows(7, 7))
    assert found.shape[0] == 0


# Trees of drafts


def path_of(node: int) -> list[int]:
    """Nodes from the root to `node`."""
    return [] if node < 0 else [*path_of(TREE[node]), node]


def tree_prompt(dtype: str, head_dim: int, base: int) -> tuple[Prompt, Rows]:
    """The tree's nodes lie behind `base` positions, one slot each."""
    prompt = Prompt(dtype, head_dim, 3, 32, base + len(TREE)).put()
    return prompt, Rows(prompt.queries[base:], base, prompt.blocks, TREE)


def chain_of(prompt: Prompt, base: int, nodes: list[int]) -> tuple[Prompt, Rows]:
    """A prompt of its own, in which the path's nodes follow each other."""
    layout = prompt.pool.layout
    group = prompt.queries.shape[1] // layout.num_kv_heads
    chain = Prompt(layout.dtype, layout.head_dim, group, 16, base + len(nodes))
    order = [*range(base), *(base + node for node in nodes)]
    chain.keys, chain.values = prompt.keys[order], prompt.values[order]
    chain.queries = prompt.queries[order]
    return chain.put(), chain.rows(base, base + len(nodes))


@pytest.mark.parametrize("visible", [(0, 0.0), (4, 0.0), (40, 3.0)], ids=str)
@pytest.mark.parametrize("base", [0, 5, 117, 126, 128, 150, 1020])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draft_in_a_tree_has_the_bits_of_its_own_path(
    dtype: str, base: int, visible: tuple[int, float]
) -> None:
    window, softcap = visible
    for head_dim in (24, 64):
        prompt, tree = tree_prompt(dtype, head_dim, base)
        (found,) = prompt.attend(tree, window=window, softcap=softcap)
        for node in range(len(TREE)):
            chain, rows = chain_of(prompt, base, path_of(node))
            (alone,) = chain.attend(rows, window=window, softcap=softcap)
            assert torch.equal(found[node], alone[-1]), f"node {node}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_given_as_a_tree_is_a_chain(dtype: str) -> None:
    for base in (0, 100, 1000):
        prompt = Prompt(dtype, 64, 3, 32, base + 40).put()
        chain = prompt.rows(base, base + 40)
        tree = Rows(chain.queries, base, prompt.blocks, list(range(-1, 39)))
        for window in (0, 30):
            (plain,) = prompt.attend(chain, window=window)
            assert torch.equal(prompt.attend(tree, window=window)[0], plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draft_sees_nothing_of_its_siblings(dtype: str) -> None:
    prompt, tree = tree_prompt(dtype, 64, 125)
    (before,) = prompt.attend(tree)
    prompt.keys[125 + 3] = 100.0
    prompt.values[125 + 3] = math.nan
    prompt.put(125)
    (after,) = prompt.attend(tree)
    changed = [node for node in range(len(TREE)) if 3 in path_of(node)]
    for node in range(len(TREE)):
        if node in changed:
            assert after[node].isnan().all()
        else:
            assert torch.equal(after[node], before[node])


# What is not a number


def break_key(prompt: Prompt, position: int) -> None:
    prompt.keys[position, 0, 3] = math.nan


def break_value(prompt: Prompt, position: int) -> None:
    prompt.values[position, 0, 3] = math.nan


def break_value_beyond_bounds(prompt: Prompt, position: int) -> None:
    prompt.values[position, 0, 3] = -math.inf


@pytest.mark.parametrize("harm", [break_key, break_value, break_value_beyond_bounds])
@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_shows_in_exactly_the_rows_that_see_it(
    dtype: str, head_dim: int, harm: Callable[[Prompt, int], None]
) -> None:
    for block_tokens, position in ((32, 77), (16, 77), (64, 1023), (32, 1100)):
        prompt = Prompt(dtype, head_dim, 3, block_tokens, 1200).put()
        begin, end = position - 50, position + 100
        for window in (0, 30):
            (clean,) = prompt.attend(prompt.rows(begin, end), window=window)
            broken = Prompt(dtype, head_dim, 3, block_tokens, 1200)
            harm(broken, position)
            (found,) = broken.put().attend(broken.rows(begin, end), window=window)
            seen = slice(50, 50 + (window or 100))
            assert found[seen, :3].isnan().any(-1).all()  # by the heads that read KV head 0
            found[seen, :3] = clean[seen, :3]
            assert torch.equal(found, clean)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_is_not_a_number_harms_no_row_beside_it(dtype: str) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        prompt = Prompt(dtype, 64, 3, 32, 300).put()
        (clean,) = prompt.attend(prompt.rows(200, 300))
        prompt.queries[250, 4, 0] = bad
        (found,) = prompt.attend(prompt.rows(200, 300))
        assert not found[50, 4].isfinite().any()
        found[50, 4] = clean[50, 4]
        assert torch.equal(found, clean)


# Size


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_may_lie_far_beyond_two_gigabytes(dtype: str) -> None:
    """In memory that is asked for but, but for two blocks, never touched."""
    layout = KvLayout(30, 8, 128, 32, dtype)
    near = Prompt(dtype, 128, 1, 32, 40, kv_heads=8).put()
    number = (5 << 30) // layout.block_bytes
    size = (number + 2) * layout.block_bytes
    no_reserve = 0x4000  # MAP_NORESERVE
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    with mmap.mmap(-1, size, flags=flags) as room:
        memory = torch.frombuffer(room, dtype=torch.uint8)
        far = KvPool.__new__(KvPool)
        far.__dict__.update(near.pool.__dict__)
        far.layout, far.cache = layout, cache_struct(layout, memory.data_ptr())
        blocks = torch.tensor([number + 1, number], dtype=torch.int32)
        far.put(blocks, 0, near.keys, near.values, layer=29)
        job = Rows(near.queries[7:], 7, blocks)
        (found,) = attend(near.library, far.cache, [job], scale=128**-0.5, layer=29)
        del memory
    assert torch.equal(found, near.attend(near.rows(7, 40))[0])
