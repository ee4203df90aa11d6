"""Paged attention of the native kernels: right, and a row's bits are its own."""

from __future__ import annotations

import itertools
import mmap
import random

import pytest
import torch
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import (
    KvPool,
    Rows,
    attend,
    cache_struct,
    libraries,
    threads,
)
from triptych_kernels.cpu.native import Library

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
DIMS = [16, 24, 32, 64, 80, 96, 128, 256]
GROUPS = [1, 3, 4, 7, 8]
BLOCK_TOKENS = [8, 16, 32, 64, 128]
LENGTHS = [1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1023, 1024, 1025, 4096]
QUERY_ROWS = [1, 2, 5, 16, 17, 33]
VISIBLE = [(0, 0.0), (40, 0.0), (0, 3.0), (200, 2.0), (1, 0.0)]  # window, softcap


def shapes() -> list[tuple[str, int, int, int]]:
    """Every dtype with every head size; groups and block sizes in turn."""
    pairs = itertools.product(DTYPES, DIMS)
    groups, tokens = itertools.cycle(GROUPS), itertools.cycle([16, 128, 32, 8, 64, 32])
    return [(dtype, dim, next(groups), next(tokens)) for dtype, dim in pairs]


def assert_close(found: Tensor, exact: Tensor, dtype: str) -> None:
    """bfloat16 weights have 8 bits: errors are relative to the values that they weigh."""
    rtol, atol = (2e-5, 2e-6) if dtype == "float32" else (1e-2, 1e-2)
    torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", shapes(), ids=str)
def test_attention_is_what_float64_says(shape: tuple[str, int, int, int]) -> None:
    prompt = Prompt(LIBRARIES[0], *shape, length=max(LENGTHS)).put()
    for number, length in enumerate(LENGTHS):
        begin = max(0, length - QUERY_ROWS[(number + shape[1] // 8) % len(QUERY_ROWS)])
        window, softcap = VISIBLE[number % len(VISIBLE)]
        with threads(prompt.library, 1 + number % 2):
            (found,) = prompt.attend(prompt.rows(begin, length), window=window, softcap=softcap)
        assert_close(found, prompt.exact(begin, length, window, softcap), shape[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
def test_every_cpu_attends_alike(library: Library, dtype: str) -> None:
    for dim, (window, softcap) in zip([24, 64, 128], VISIBLE, strict=False):
        prompt = Prompt(library, dtype, dim, 3, 32, 300).put()
        (found,) = prompt.attend(prompt.rows(267, 300), window=window, softcap=softcap)
        assert_close(found, prompt.exact(267, 300, window, softcap), dtype)


@pytest.mark.parametrize("visible", VISIBLE, ids=str)
@pytest.mark.parametrize("shape", shapes()[::2], ids=str)
def test_a_row_has_the_same_bits_alone_in_any_chunk_and_on_any_threads(
    shape: tuple[str, int, int, int], visible: tuple[int, float]
) -> None:
    window, softcap = visible
    prompt = Prompt(LIBRARIES[0], *shape, length=1200).put()
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
        prompt = Prompt(LIBRARIES[0], dtype, 32, 3, block_tokens, 333)
        chunks = list(itertools.pairwise([0, 1, 16, 40, 64, 65, 130, 333]))
        found = [prompt.put(a, b).attend(prompt.rows(a, b))[0] for a, b in chunks]
        assert torch.equal(torch.cat(found), prompt.attend(prompt.rows(0, 333))[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_block_sizes_change_no_bit(dtype: str) -> None:
    found = []
    for block_tokens in BLOCK_TOKENS:
        prompt = Prompt(LIBRARIES[0], dtype, 64, 4, block_tokens, 1100).put()
        found.append(prompt.attend(prompt.rows(1050, 1100), window=1024)[0])
    assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("head_dim", [24, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jobs_of_every_kind_share_a_call(dtype: str, head_dim: int) -> None:
    prompt = Prompt(LIBRARIES[0], dtype, head_dim, 3, 32, 2100).put()
    tree = Rows(prompt.queries[140:151], 140, prompt.blocks, [-1, 0, 0, 1, 2, -1, 5, 5, 3, 8, 8])
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
    prompt = Prompt(LIBRARIES[0], "float32", 32, 1, 32, 40).put()
    (found,) = prompt.attend(prompt.rows(7, 7))
    assert found.shape[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_may_lie_far_beyond_two_gigabytes(dtype: str) -> None:
    """In memory that is asked for but, but for two blocks, never touched."""
    layout = KvLayout(30, 8, 128, 32, dtype)
    near = Prompt(LIBRARIES[0], dtype, 128, 1, 32, 40, kv_heads=8).put()
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


@pytest.mark.parametrize("start", [3, 27, 121, 1019])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_tree_has_the_bits_of_the_same_row_in_a_chain(dtype: str, start: int) -> None:
    """However wide and deep the tree is, and wherever parts and tiles end in it."""
    for seed, (window, softcap) in enumerate(VISIBLE):
        dice = random.Random(f"{start}/{seed}")
        nodes = 40
        prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 32, start + nodes).put()
        other = Prompt(LIBRARIES[0], dtype, 64, 3, 32, start + nodes)
        wide = [-1, *(max(-1, dice.randrange(-1, i)) if i % 3 else i - 1 for i in range(1, nodes))]
        queries = prompt.queries[start:]
        tree = Rows(queries, start, prompt.blocks, wide)
        (found,) = prompt.attend(tree, window=window, softcap=softcap)
        for row in range(nodes):
            path = [row]
            while wide[path[0]] >= 0:
                path.insert(0, wide[path[0]])
            places = [*range(start), *(start + node for node in path)]
            other.keys[: len(places)] = prompt.keys[places]
            other.values[: len(places)] = prompt.values[places]
            other.put(0, len(places))
            chain = Rows(queries[path], start, other.blocks)
            (alone,) = other.attend(chain, window=window, softcap=softcap)
            assert torch.equal(found[row], alone[-1]), f"row {row}, path {path}"
