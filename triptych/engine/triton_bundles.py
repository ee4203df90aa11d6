"""Which sequences of a step read their first splits together, and what kernels are told of it.

Only the order of rows within a launch, and who reads what, depend on it; no bit does
(triton/shared_splits.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.engine.shared_prefix import share_prefixes
from triptych_kernels.triton.attention import SPLIT_TOKENS
from triptych_kernels.triton.shared_splits import SharedSplits

ALL_SPLITS = torch.iinfo(torch.int32).max


class Bundle(NamedTuple):
    """Sequences that begin with the same whole splits."""

    members: int
    splits: int


class Bundles(NamedTuple):
    """Numbers of all sequences, bundle by bundle before whoever shares nothing; and the bundles."""

    order: list[int]
    found: list[Bundle]


def find_bundles(tables: Seq[Seq[int]], known: Seq[int], block_tokens: int) -> Bundles:
    """`tables`, `known`: as `share_prefixes` takes them. Pure."""
    every = list(range(len(tables)))
    if sum(count >= SPLIT_TOKENS for count in known) < 2:
        return Bundles(every, [])
    shared = share_prefixes(
        tables, known, block_tokens, tile_tokens=SPLIT_TOKENS, min_saved_tiles=1
    )
    order = sorted(every, key=lambda number: (not shared[number].bundle, shared[number].bundle))
    found: dict[int, Bundle] = {}
    for number in order:
        name, slots = shared[number]
        if name:
            members = found[name].members + 1 if name in found else 1
            found[name] = Bundle(members, slots // SPLIT_TOKENS)
    return Bundles(order, list(found.values()))


class SharedRoom:
    """What a launch with up to so many bundles reads, always in the same memory."""

    def __init__(
        self,
        sequences: int,
        bundles: int,
        pages: int,
        device: torch.device,
        *,
        max_rows: int,
        max_splits: int,
    ) -> None:
        """pages: of a table. max_rows and max_splits: of a bundle."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.splits = SharedSplits(
            own=torch.tensor([0, ALL_SPLITS], dtype=torch.int32, device=device).repeat(
                sequences, 1
            ),
            splits=zeros(bundles, 2),
            row_starts=zeros(bundles + 1),
            tables=zeros(bundles, pages),
            lengths=zeros(bundles),
            max_rows=max_rows,
            max_splits=max_splits,
        )

    def fill(self, bundles: Seq[Bundle], tables: Tensor, row_starts: Seq[int]) -> None:
        """tables int32 [B, pages], on any device, and row_starts [B + 1]: of the sequences in the
        bundles' order. What is behind the bundles has no rows and reads nothing.
        """
        to = self.splits
        own = torch.tensor([0, ALL_SPLITS], dtype=torch.int32).repeat(len(to.own), 1)
        splits, lengths = torch.zeros(to.splits.shape, dtype=torch.int32), [0] * len(to.lengths)
        starts, leaders, first = [0], [0] * len(to.lengths), 0
        for number, bundle in enumerate(bundles):
            end = first + bundle.members
            own[first:end, 0] = bundle.splits
            splits[number, 1] = bundle.splits
            starts.append(row_starts[end])
            # Trees begin behind what they share: see `start` in the kernel.
            lengths[number] = bundle.splits * SPLIT_TOKENS + row_starts[end] - row_starts[first]
            leaders[number] = first
            first = end
        starts += [starts[-1]] * (len(to.row_starts) - len(starts))
        to.own.copy_(own)
        to.splits.copy_(splits)
        to.row_starts.copy_(torch.tensor(starts, dtype=torch.int32))
        to.lengths.copy_(torch.tensor(lengths, dtype=torch.int32))
        to.tables.copy_(tables[leaders] if leaders else tables[:0])


def share_splits(
    bundles: Seq[Bundle], tables: Tensor, row_starts: Seq[int], device: torch.device
) -> SharedSplits:
    """Of one step; arguments as for `SharedRoom.fill`."""
    ends = [sum(bundle.members for bundle in bundles[: n + 1]) for n in range(len(bundles))]
    rows = [
        row_starts[end] - row_starts[end - bundle.members]
        for end, bundle in zip(ends, bundles, strict=True)
    ]
    room = SharedRoom(
        len(tables),
        len(bundles),
        tables.shape[1],
        device,
        max_rows=max(rows, default=0),
        max_splits=max((bundle.splits for bundle in bundles), default=0),
    )
    room.fill(bundles, tables, row_starts)
    return room.splits
