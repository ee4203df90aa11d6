"""The reference ops: right, and with the same bits whatever the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych_kernels import Linear, gelu_tanh_mul, paged_attention, silu_mul

BLOCK_TOKENS = 16


def dense_attention(
    q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """q [N, Hq, D], keys, values [N, Hkv, D] → [N, Hq, D], the textbook way in float64."""
    group = q.shape[1] // keys.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    position = torch.arange(q.shape[0])
    masked = position[None] > position[:, None]
    if window is not None:
        masked |= position[None] <= position[:, None] - window
    weights = scores.masked_fill(masked, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).float()


@pytest.mark.parametrize("in_features, out_features", [(64, 96), (100, 36), (576, 49), (1536, 576)])
@pytest.mark.parametrize("num_rows", [1, 3, 16, 17, 100, 513])
def test_a_row_of_a_linear_does_not_depend_on_its_batch(
    in_features: int, out_features: int, num_rows: int
) -> None:
    torch.manual_seed(0)
    linear = Linear(torch.randn(out_features, in_features), torch.randn(out_features))
    rows = torch.randn(num_rows, in_features)
    together = linear(rows)
    for row in range(0, num_rows, 37):
        assert torch.equal(linear(rows[row : row + 1])[0], together[row])
    shuffled = torch.randperm(num_rows)
    assert torch.equal(linear(rows[shuffled]), together[shuffled])


def test_a_linear_is_a_matrix_product() -> None:
    torch.manual_seed(0)
    weight, bias, rows = torch.randn(40, 700), torch.randn(40), torch.randn(5, 700)
    expected = (rows.double() @ weight.double().t() + bias).float()
    torch.testing.assert_close(Linear(weight, bias)(rows), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("q_heads, kv_heads, head_dim", [(9, 3, 64), (4, 1, 32), (8, 8, 80)])
@pytest.mark.parametrize("window, softcap", [(None, None), (100, None), (None, 30.0)])
@pytest.mark.parametrize("chunk", [1, 7, 64, 333])
def test_attention_has_the_same_bits_in_any_chunking(
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    window: int | None,
    softcap: float | None,
    chunk: int,
) -> None:
    torch.manual_seed(0)
    length, scale = 400, head_dim**-0.5
    pool = torch.randn(40, 2, BLOCK_TOKENS, kv_heads, head_dim)
    blocks = torch.randperm(40)[: length // BLOCK_TOKENS]
    keys, values = pool[:, 0], pool[:, 1]
    q = torch.randn(length, q_heads, head_dim)

    def attend(begin: int, end: int) -> Tensor:
        return paged_attention(
            q[begin:end], keys, values, blocks, begin, scale=scale, window=window, softcap=softcap
        )

    whole = attend(0, length)
    flat_keys, flat_values = keys[blocks].flatten(0, 1), values[blocks].flatten(0, 1)
    expected = dense_attention(q, flat_keys, flat_values, scale, window, softcap)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    starts = range(0, length, chunk) if chunk > 1 else (0, 5, 127, 128, 129, 399)
    for begin in starts:
        assert torch.equal(attend(begin, min(begin + chunk, length)), whole[begin : begin + chunk])


@pytest.mark.parametrize("activation", [silu_mul, gelu_tanh_mul])
@pytest.mark.parametrize("size", [44, 1536, 4864, 8192])
def test_an_activation_does_not_depend_on_batch_or_threads(
    activation: Callable[[Tensor, Tensor], Tensor], size: int
) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(144, 2 * size).chunk(2, dim=-1)
    with threads(1):
        alone = torch.cat(
            [activation(gate[row : row + 16], up[row : row + 16]) for row in range(0, 144, 16)]
        )
    for count in (2, 3, 4, 6, 8):
        with threads(count):
            for rows in (16, 32, 96, 144):
                assert torch.equal(activation(gate[:rows], up[:rows]), alone[:rows]), (count, rows)


def test_activations_are_those_of_torch() -> None:
    gate, up = torch.linspace(-30, 30, 1001), torch.randn(1001)
    torch.testing.assert_close(silu_mul(gate, up), F.silu(gate) * up)
    expected = F.gelu(gate, approximate="tanh") * up
    torch.testing.assert_close(gelu_tanh_mul(gate, up), expected, rtol=1e-5, atol=1e-6)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_what_lies_behind_the_last_position_is_never_seen() -> None:
    pool = torch.full((2, 2, BLOCK_TOKENS, 1, 8), torch.nan)
    pool[1, :, :5] = torch.randn(2, 5, 1, 8)
    q = torch.randn(1, 2, 8)
    out = paged_attention(q, pool[:, 0], pool[:, 1], torch.tensor([1]), 4, scale=1.0)
    assert torch.isfinite(out).all()
