"""Sinks, and values narrower than keys: right, and a row's bits are still its own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from triptych.testing.kv_prompts import Prompt
from triptych.testing.native_kernels import Rows, libraries, threads
from triptych_kernels import paged_attention
from triptych_kernels.cpu.native import Library

LIBRARIES = libraries()
needs_native = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
VISIBLE = [(0, 0.0), (40, 0.0), (0, 3.0), (1, 0.0)]  # window, softcap
DIMS, LENGTHS = [24, 64, 64, 128], [2100, 33, 1, 300]


def some_sinks(heads: int) -> Tensor:
    """Of one head nothing, of another nearly all that there is."""
    sinks = torch.linspace(-3, 3, heads)
    sinks[0], sinks[-1] = -60.0, 30.0
    return sinks


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.level.name)
def test_a_sink_takes_its_share_and_adds_nothing(library: Library, dtype: str) -> None:
    sinks = some_sinks(6)
    rtol, atol = (2e-5, 2e-6) if dtype == "float32" else (1e-2, 1e-2)
    for dim, length, (window, softcap) in zip(DIMS, LENGTHS, VISIBLE, strict=True):
        prompt = Prompt(library, dtype, dim, 3, 32, length).put()
        begin = max(0, length - 33)
        rows = prompt.rows(begin, length)
        (found,) = prompt.attend(rows, window=window, softcap=softcap, sinks=sinks)
        exact = prompt.exact(begin, length, window, softcap, sinks)
        torch.testing.assert_close(found.double(), exact, rtol=rtol, atol=atol)
        (without,) = prompt.attend(rows, window=window, softcap=softcap)
        assert torch.equal(found[:, 0], without[:, 0]) and not torch.equal(found, without)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_in_any_chunk_batch_and_on_any_threads(dtype: str) -> None:
    sinks = some_sinks(6)
    for (window, _), length in itertools.product(VISIBLE[:2], (60, 2100)):
        prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 32, length).put()
        begin = length - 40
        (whole,) = prompt.attend(prompt.rows(begin, length), window=window, sinks=sinks)
        for number, (first, last) in enumerate(((0, 1), (39, 40), (5, 7), (20, 40))):
            part = prompt.rows(begin + first, begin + last)
            with threads(prompt.library, 1 + number % 2):
                jobs = [prompt.rows(0, 17), part]
                _, beside = prompt.attend(*jobs, window=window, sinks=sinks)
                (alone,) = prompt.attend(part, window=window, sinks=sinks)
            assert torch.equal(alone, whole[first:last])
            assert torch.equal(beside, whole[first:last])


@needs_native
@pytest.mark.parametrize("start", [3, 121, 1019])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_tree_has_the_bits_of_the_same_row_in_a_chain(dtype: str, start: int) -> None:
    sinks, parents = some_sinks(6), [-1, 0, 0, 1, -1, 4, 2, 6]
    prompt = Prompt(LIBRARIES[0], dtype, 64, 3, 32, start + len(parents)).put()
    other = Prompt(LIBRARIES[0], dtype, 64, 3, 32, start + len(parents))
    queries = prompt.queries[start:]
    (found,) = prompt.attend(Rows(queries, start, prompt.blocks, parents), sinks=sinks)
    for row in range(len(parents)):
        path = [row]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        places = [*range(start), *(start + node for node in path)]
        other.keys[: len(places)], other.values[: len(places)] = (
            prompt.keys[places],
            prompt.values[places],
        )
        other.put(0, len(places))
        (alone,) = other.attend(Rows(queries[path], start, other.blocks), sinks=sinks)
        assert torch.equal(found[row], alone[-1]), f"row {row}"


@needs_native
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 32), (48, 20), (24, 10)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_values_are_the_first_numbers_of_wide_ones(
    dtype: str, dim: int, value_dim: int
) -> None:
    prompt = Prompt(LIBRARIES[0], dtype, dim, 1, 32, 300).put()
    rows = prompt.rows(280, 300)
    (wide,), (narrow,) = prompt.attend(rows), prompt.attend(rows, value_dim=value_dim)
    assert torch.equal(narrow, wide[..., :value_dim])


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("chunk", [1, 7, 64, 333])
def test_the_reference_gives_sinks_their_share_in_any_chunking(
    chunk: int, window: int | None
) -> None:
    torch.manual_seed(0)
    length, q_heads, kv_heads, size = 400, 6, 2, 16
    sinks = some_sinks(q_heads)
    pool = torch.randn(40, 2, size, kv_heads, 32)
    blocks = torch.randperm(40)[: length // size]
    q = torch.randn(length, q_heads, 32)

    def attend(begin: int, end: int, sinks: Tensor | None) -> Tensor:
        return paged_attention(
            q[begin:end],
            pool[:, 0],
            pool[:, 1],
            blocks,
            begin,
            scale=0.2,
            window=window,
            sinks=sinks,
        )

    whole = attend(0, length, sinks)
    keys, values = (pool[blocks, part].flatten(0, 1).double() for part in (0, 1))
    scores = (
        torch.einsum("rhgd,nhd->hgrn", q.double().view(length, kv_heads, -1, 32), keys).flatten(
            0, 1
        )
        * 0.2
    )
    back = torch.arange(length)[:, None] - torch.arange(length)
    scores.masked_fill_((back < 0) | (back >= (window or length)), -torch.inf)
    sink = sinks.double().view(-1, 1, 1).expand(-1, length, 1)
    shares = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :length]
    expected = torch.einsum("hrn,nhd->rhd", shares, values.repeat_interleave(3, dim=1))
    torch.testing.assert_close(whole.double(), expected, rtol=1e-4, atol=1e-5)
    for begin in range(0, length, chunk) if chunk > 1 else (0, 5, 127, 128, 129, 399):
        end = min(begin + chunk, length)
        assert torch.equal(attend(begin, end, sinks), whole[begin:end])
    without = attend(0, length, torch.full((q_heads,), -torch.inf))
    assert torch.equal(without, attend(0, length, None))
