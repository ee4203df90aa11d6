"""The native KV cache: what is put comes back, and only it is written."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from triptych.kv.layout import KvLayout
from triptych.testing.native_kernels import KvPool, libraries

LIBRARIES = libraries()
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="no native kernels here")

DTYPES = ["float32", "bfloat16", "int8"]
HEADS = 3


def make_pool(
    dtype: str, head_dim: int, block_tokens: int, num_tokens: int, *, library: int = 0
) -> tuple[KvPool, Tensor]:
    """A pool of two layers, and blocks for `num_tokens` in no order."""
    layout = KvLayout(2, HEADS, head_dim, block_tokens, dtype)
    count = layout.blocks_for(num_tokens)
    pool = KvPool(LIBRARIES[library], layout, count + 2)
    shuffled = torch.randperm(count + 2, generator=torch.Generator().manual_seed(num_tokens))
    return pool, shuffled[:count].int()


def random_kv(count: int, head_dim: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(count)
    keys, values = torch.randn(2, count, HEADS, head_dim, generator=source)
    return keys, values


def rounded(x: Tensor, dtype: str) -> Tensor:
    """As the cache keeps x [N, Hkv, D]."""
    if dtype != "int8":
        return x.to(getattr(torch, dtype)).float()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x * torch.where(scale > 0, 1 / scale, 0)).round() * scale


@pytest.mark.parametrize("block_tokens", [8, 16, 32, 48, 64])
@pytest.mark.parametrize("head_dim", [16, 24, 80, 128, 512])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_put_is_read_back(dtype: str, head_dim: int, block_tokens: int) -> None:
    for library in range(len(LIBRARIES)):
        pool, blocks = make_pool(dtype, head_dim, block_tokens, 75, library=library)
        keys, values = random_kv(75, head_dim)
        values[3] = 0
        for begin, end in ((0, 33), (33, 34), (34, 75)):
            pool.put(blocks, begin, keys[begin:end], values[begin:end], layer=1)
        found = pool.read(blocks, 75, layer=1)
        assert torch.equal(found[0], rounded(keys, dtype))
        assert torch.equal(found[1], rounded(values, dtype))


@pytest.mark.parametrize("block_tokens", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_layers_and_blocks_stay_as_they_are(dtype: str, block_tokens: int) -> None:
    pool, blocks = make_pool(dtype, 32, block_tokens, 50)
    before = pool.memory.clone()
    pool.put(blocks, 0, *random_kv(50, 32), layer=1)
    changed = (pool.memory != before).view(len(before), 2, -1).any(-1)
    assert not changed[:, 0].any()
    assert sorted(changed[:, 1].nonzero().flatten().tolist()) == sorted(blocks.tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_position_that_was_rolled_back_can_be_written_again(dtype: str) -> None:
    pool, blocks = make_pool(dtype, 32, 32, 70)
    keys, values = random_kv(70, 32)
    pool.put(blocks, 0, keys, values)
    again = random_kv(36, 32)
    pool.put(blocks, 34, *again)
    found = pool.read(blocks, 70)
    assert torch.equal(found[0], rounded(torch.cat([keys[:34], again[0]]), dtype))
    assert torch.equal(found[1], rounded(torch.cat([values[:34], again[1]]), dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_key_that_is_not_a_number_stays_none(dtype: str, bad: float) -> None:
    pool, blocks = make_pool(dtype, 24, 16, 20)
    keys, values = random_kv(20, 24)
    keys[7, 1, 5] = bad
    pool.put(blocks, 0, keys, values)
    found = pool.read(blocks, 20)
    broken = ~found[0].isfinite()
    assert broken[7, 1, 5] and broken.any(-1).sum() == 1
    assert torch.equal(found[1], rounded(values, dtype))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_value_that_is_not_a_number_breaks_its_key_and_is_kept_as_zero(
    dtype: str, bad: float
) -> None:
    """Whoever sees it gets NaN by its score; who does not must be able to multiply it by 0."""
    pool, blocks = make_pool(dtype, 24, 16, 20)
    keys, values = random_kv(20, 24)
    values[7, 1, 5] = bad
    pool.put(blocks, 0, keys, values)
    found = pool.read(blocks, 20)
    assert found[0][7, 1].isnan().all() and (found[1][7, 1] == 0).all()
    assert found[0].isnan().any(-1).sum() == 1 and found[1].isfinite().all()
