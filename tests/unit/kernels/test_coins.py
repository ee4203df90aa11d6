"""Chance that belongs to one purpose, position and number, and to nothing else."""

from __future__ import annotations

import torch

from triptych_kernels.coins import Purpose, coins, stream


def test_a_coin_is_a_function_of_seed_position_and_number() -> None:
    assert torch.equal(coins(7, 3, 5), coins(7, 3, 9)[:5])
    assert not set(coins(7, 3, 5).tolist()) & set(coins(7, 4, 5).tolist())
    assert not set(coins(7, 3, 5).tolist()) & set(coins(8, 3, 5).tolist())


def test_coins_are_pinned_to_the_bit() -> None:
    """A change of these numbers changes how streams go on that are judged by them."""
    assert [coin.hex() for coin in coins(stream(1, Purpose.ACCEPT), 5, 2).tolist()] == PINNED


PINNED = ["0x1.964d706c2d265p-1", "0x1.5515339cd060cp-3"]


def test_every_purpose_has_chance_of_its_own() -> None:
    """Each is uniform, and none follows another."""
    seeds = [5, *(stream(5, purpose) for purpose in Purpose)]
    throws = torch.stack([coins(seed, 1, 20_000) for seed in seeds])
    assert (throws.mean(1) - 0.5).abs().max() < 0.01
    assert (torch.corrcoef(throws) - torch.eye(len(seeds))).abs().max() < 0.03
    assert throws.min() > 0 and throws.max() < 1
