"""Between matrix products: norms, rotation, and keys and values on their way to pools."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triptych_kernels import append_kv, apply_rotary, rms_norm, rotary_cos_sin
from triptych_kernels.triton.kv_move import HeadMove, head_moves, heads_of_rank, move_kv
from triptych_kernels.triton.norms import add_rms_norm
from triptych_kernels.triton.rope_append import HeadNorms, rope_append

HEADS, KV_HEADS, DIM, BLOCK = 4, 2, 24, 16
DTYPES = [torch.float32, torch.bfloat16]


def pool_views(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as triptych/kv/layout.py has them: values lie transposed."""
    blocks = len(pool)
    keys = pool[:, 0].view(blocks, KV_HEADS, BLOCK, DIM).permute(0, 2, 1, 3)
    values = pool[:, 1].view(blocks, KV_HEADS, DIM, BLOCK).permute(0, 3, 1, 2)
    return keys, values


def empty_pool(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros(5, 2, KV_HEADS * BLOCK * DIM, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_stream_is_added_to_and_normed(
    offset: float, dtype: torch.dtype, device: torch.device
) -> None:
    chance = torch.Generator().manual_seed(1)
    hidden, delta = torch.randn(2, 5, 100, generator=chance).to(dtype)
    weight = torch.randn(100, generator=chance)
    stream = hidden.clone().to(device)
    normed = add_rms_norm(stream, delta.to(device), weight.to(device), 1e-5, weight_offset=offset)
    assert torch.equal(stream.cpu(), hidden + delta)
    expected = rms_norm(hidden + delta, weight, 1e-5, weight_offset=offset).float()
    # The reference's product with a float32 weight stays one; here it is rounded once more.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(normed.cpu().float(), expected, rtol=tolerance, atol=tolerance)
    alone = add_rms_norm(stream[3:4].clone(), None, weight.to(device), 1e-5, weight_offset=offset)
    assert torch.equal(alone[0], normed[3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_are_rotated_and_stored_as_by_the_reference(
    dtype: torch.dtype, device: torch.device
) -> None:
    """To the bit; a third of each head is not rotated, one row has no slot."""
    chance = torch.Generator().manual_seed(2)
    qkv = torch.randn(6, (HEADS + 2 * KV_HEADS) * DIM, generator=chance).to(dtype)
    cos, sin = rotary_cos_sin(torch.arange(6) + 7, torch.rand(8, generator=chance))
    slots = torch.tensor([17, 3, -1, 79, 40, 41])
    pool = empty_pool(dtype, device)
    queries = rope_append(
        *(x.to(device) for x in (qkv, cos, sin, slots)), *pool_views(pool), num_heads=HEADS
    )
    heads = qkv.view(6, -1, DIM)
    rotated = apply_rotary(heads[:, : HEADS + KV_HEADS].float(), cos, sin).to(dtype)
    assert torch.equal(queries.cpu(), rotated[:, :HEADS])
    expected, kept = empty_pool(dtype, torch.device("cpu")), slots >= 0
    keys, values = pool_views(expected)
    append_kv(keys, rotated[kept][:, HEADS:], slots[kept])
    append_kv(values, heads[kept][:, HEADS + KV_HEADS :], slots[kept])
    assert torch.equal(pool.cpu(), expected)


def test_heads_are_normed_before_they_are_rotated(device: torch.device) -> None:
    chance = torch.Generator().manual_seed(3)
    qkv = torch.randn(3, (HEADS + 2 * KV_HEADS) * DIM, generator=chance)
    cos, sin = rotary_cos_sin(torch.arange(3), torch.rand(12, generator=chance))
    weights = torch.randn(2, DIM, generator=chance)
    pool = empty_pool(torch.float32, device)
    keys, values = pool_views(pool)
    queries = rope_append(
        *(x.to(device) for x in (qkv, cos, sin, torch.arange(3))),
        keys,
        values,
        num_heads=HEADS,
        norms=HeadNorms(weights[0].to(device), weights[1].to(device), 1e-6),
    )
    heads = qkv.view(3, -1, DIM)
    for got, part, weight in (
        (queries, heads[:, :HEADS], weights[0]),
        (keys[0, :3], heads[:, HEADS : HEADS + KV_HEADS], weights[1]),
    ):
        expected = apply_rotary(rms_norm(part, weight, 1e-6), cos, sin)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_a_value_that_is_not_finite_is_zeros_beside_a_key_of_nan(device: torch.device) -> None:
    qkv = torch.ones(3, (HEADS + 2 * KV_HEADS) * DIM, device=device)
    qkv[1, -1] = torch.nan  # of the last KV head
    qkv[2, -1] = 3.4e38  # infinite as a bfloat16
    cos, sin = torch.ones(3, 12, device=device), torch.zeros(3, 12, device=device)
    pool = empty_pool(torch.bfloat16, device)
    keys, values = pool_views(pool)
    rope_append(qkv, cos, sin, torch.arange(3, device=device), keys, values, num_heads=HEADS)
    assert keys[0, 1:3, 1].isnan().all() and (values[0, 1:3, 1] == 0).all()
    assert (keys[0, :3, 0] == 1).all() and (values[0, :3, 0] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_kv_moves_between_layouts_block_sizes_and_ranks(
    dtype: torch.dtype, device: torch.device
) -> None:
    """From two heads of four in blocks of 8 to a pool of 16 with transposed values."""
    chance = torch.Generator().manual_seed(4)
    source = (100 * torch.randn(9, 8, 4, 24, generator=chance)).clamp(-127, 127)
    source = source.to(device, dtype)
    target = torch.full((7, 2, 24, 16), 9, dtype=dtype, device=device).permute(0, 3, 1, 2)
    from_blocks, to_blocks = (
        torch.tensor(blocks, dtype=torch.int32, device=device)
        for blocks in ([3, 1, 8, 0, 2], [5, 2, 6])
    )
    heads = torch.tensor([[2, 3], [0, 1]], dtype=torch.int32, device=device)
    move_kv(source, from_blocks, heads[0], target, to_blocks, heads[1], 37)
    moved = target[to_blocks.long()].flatten(0, 1)
    assert torch.equal(moved[:37], source[from_blocks.long()].flatten(0, 1)[:37, 2:])
    assert (moved[37:] == 0).all() and (target[[0, 1, 3, 4]] == 9).all()


@pytest.mark.parametrize(("source", "target"), [(1, 4), (4, 1), (2, 8), (8, 2), (4, 4), (8, 8)])
def test_each_rank_gets_the_heads_that_it_holds(source: int, target: int) -> None:
    kv_heads = 4
    moves = head_moves(kv_heads, source, target)
    assert len({(move.target_rank, move.target_head) for move in moves}) == len(moves)
    for move in moves:
        sent = heads_of_rank(kv_heads, source, move.source_rank)[move.source_head]
        assert heads_of_rank(kv_heads, target, move.target_rank)[move.target_head] == sent
    wanted = sum(len(heads_of_rank(kv_heads, target, rank)) for rank in range(target))
    assert len(moves) == wanted


def test_ranks_that_hold_copies_share_the_sending() -> None:
    """Two heads, held by two ranks each."""
    moves = head_moves(2, 4, 4)
    assert moves == [HeadMove(rank, 0, rank, 0) for rank in range(4)]


def test_heads_that_cannot_be_shared_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="6 KV heads are not shared evenly by 4 ranks"):
        heads_of_rank(6, 4, 0)
    with pytest.raises(ValueError, match="3 ranks are no multiple of 2 KV heads"):
        heads_of_rank(2, 3, 0)
