"""Verification of trees of drafts: every row sees what all share, and its own path.

A row's ancestors are bits of 64: bit j of a row's mask says that it sees row j of its tree, itself
included; what stands before the tree it sees anyway. Rows stand behind their ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych_kernels.triton.attention import Attended, AttentionShape, PagedKv, Skipping
from triptych_kernels.triton.column_scores import column_scores
from triptych_kernels.triton.decode import Paths, paged_decode
from triptych_kernels.triton.shared_splits import SharedSplits

MAX_TREE = 64


@dataclass(frozen=True, slots=True)
class Trees:
    """A batch of trees, made once for all layers of a step."""

    masks: Tensor  # int64 [T]: 64 bits each
    row_starts: Tensor  # int32 [B + 1]
    paths: Paths
    max_rows: int


def make_trees(masks: Sequence[Sequence[int]], device: torch.device) -> Trees:
    """masks: by sequence and row, as Python's numbers."""
    depths: list[int] = []
    owners: list[int] = []
    paths: list[list[list[int]]] = []
    starts = [0]
    for sequence, tree in enumerate(masks):
        _check(sequence, tree)
        ancestors = 0
        for row, mask in enumerate(tree):
            ancestors |= mask & ~(1 << row)
        leaves = [row for row in range(len(tree)) if not ancestors >> row & 1]
        depths += [mask.bit_count() - 1 for mask in tree]
        owners += [
            next(number for number, leaf in enumerate(leaves) if tree[leaf] >> row & 1)
            for row in range(len(tree))
        ]
        paths.append([_bits(tree[leaf]) for leaf in leaves])
        starts.append(starts[-1] + len(tree))
    most = max((len(of) for of in paths), default=0)
    deepest = max((len(path) for of in paths for path in of), default=0)
    nodes = torch.full((len(masks), max(1, most), max(1, deepest)), -1, dtype=torch.int32)
    for sequence, of in enumerate(paths):
        for number, path in enumerate(of):
            nodes[sequence, number, : len(path)] = torch.tensor(path, dtype=torch.int32)
    flat = [mask - (1 << 64) if mask >> 63 else mask for tree in masks for mask in tree]

    def whole(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int32, device=device)

    leaves_of = whole([max(1, len(of)) for of in paths])
    return Trees(
        torch.tensor(flat, dtype=torch.int64, device=device),
        whole(starts),
        Paths(whole(depths), whole(owners), nodes.to(device), leaves_of),
        max((len(tree) for tree in masks), default=0),
    )


def verify_attention(
    q: Tensor,
    kv: PagedKv,
    trees: Trees,
    shape: AttentionShape,
    *,
    max_length: int,
    skipping: Skipping | None = None,
    shared: SharedSplits | None = None,
    block_rows: int = 64,
    scores_by: int | None = None,
) -> tuple[Attended, Tensor | None]:
    """Attention of trees, whose rows' KV lies in the last slots of their sequences, row by row.

    With `scores_by`, also how much attention tokens (1) or pages (kv.page) got from the rows; see
    column_scores.py.
    """
    attended = paged_decode(
        q,
        kv,
        trees.row_starts,
        shape,
        max_rows=trees.max_rows,
        max_length=max_length,
        paths=trees.paths,
        skipping=skipping,
        shared=shared,
        block_rows=block_rows,
    )
    if scores_by is None:
        return attended, None
    return attended, column_scores(
        q,
        kv,
        trees.row_starts,
        shape,
        attended.lse2,
        max_length=max_length,
        pool=scores_by,
        masks=trees.masks,
    )


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]


def _check(sequence: int, tree: Sequence[int]) -> None:
    if len(tree) > MAX_TREE:
        raise ValueError(f"tree {sequence} has {len(tree)} rows: {MAX_TREE} at most")
    for row, mask in enumerate(tree):
        before = _bits(mask)[:-1]
        if mask >> row != 1:
            raise ValueError(f"tree {sequence}: row {row} must see itself, and no row behind it")
        if before and tree[before[-1]] != mask ^ (1 << row):
            raise ValueError(f"tree {sequence}: row {row} must see all that its parent sees")
