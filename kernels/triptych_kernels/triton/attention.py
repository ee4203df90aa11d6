"""What attention is asked about, and in which tiles it answers. Shared by all its kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT_TOKENS = 1024  # positions that are folded into one state; as on the CPU
LOG2E = math.log2(math.e)
NO_BUDGET = 1e30  # × a sum of weights it is still a number
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class PagedKv:
    """One layer's keys and values, and where sequences lie in them.

    keys, values [num_blocks, block_tokens, Hkv, D]: views with any strides but D's, which is 1.
    block_tokens is a power of two. Values must be finite, or they show in rows of the same tile
    that do not see them: what appends stores zeros, and a key of NaN, instead.
    tables int32 [B, P], or [Hkv, B, P] where each KV head reads pages of its own; what stands
    behind the last page of a sequence is never looked at.
    lengths int32 [B], or [Hkv, B]: tokens, those of the rows included.
    """

    keys: Tensor
    values: Tensor
    tables: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.keys.shape != self.values.shape or self.keys.dtype != self.values.dtype:
            raise ValueError(
                f"keys {tuple(self.keys.shape)} {self.keys.dtype} and values "
                f"{tuple(self.values.shape)} {self.values.dtype} must be alike"
            )
        if self.keys.dtype not in _DTYPES:
            raise ValueError(f"keys are {self.keys.dtype}: give {', '.join(map(str, _DTYPES))}")
        if self.keys.stride(-1) != 1 or self.values.stride(-1) != 1:
            raise ValueError("keys and values need stride 1 in their last dimension")
        if self.page & (self.page - 1):
            raise ValueError(f"block_tokens is {self.page}: it must be a power of two")
        if self.tables.dtype != torch.int32 or self.lengths.dtype != torch.int32:
            raise ValueError("tables and lengths must be int32")
        if self.tables.dim() not in (2, 3) or self.tables.stride(-1) != 1:
            raise ValueError("tables must be [B, P] or [Hkv, B, P], with stride 1 at the end")
        if self.lengths.shape != self.tables.shape[:-1]:
            raise ValueError(
                f"lengths {tuple(self.lengths.shape)} do not fit tables {tuple(self.tables.shape)}"
            )

    @property
    def page(self) -> int:
        return self.keys.shape[1]

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[2]

    @property
    def head_dim(self) -> int:
        return self.keys.shape[3]

    @property
    def per_head(self) -> bool:
        return self.tables.dim() == 3

    def head_stride(self, of: Tensor) -> int:
        """Between KV heads, of `tables` or `lengths`: 0 where one serves all."""
        return of.stride(0) if self.per_head else 0

    def batch_stride(self, of: Tensor) -> int:
        return of.stride(1) if self.per_head else of.stride(0)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a layer's attention is; see `reference.paged_attention`. sinks: float32 [Hq]."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}: give 1 or more, or None for no window")
        if self.softcap is not None and self.softcap <= 0:
            raise ValueError(f"softcap is {self.softcap}: give more than 0, or None for no cap")

    @property
    def factors(self) -> tuple[float, float]:
        """What `attention_math.logits` takes: scale, cap."""
        if self.softcap is None:
            return self.scale * LOG2E, 0.0
        return self.scale / self.softcap, self.softcap * LOG2E


@dataclass(frozen=True, slots=True)
class Skipping:
    """Leave out what weighs little; see skipping.py. Numbers change, so it is opt-in.

    thresholds float32 [B]: the share of the largest weight below which a tile is left out; 0 leaves
    nothing out, and neither does what is not below 1. scaled: a row's threshold is its sequence's
    over the positions that it sees, as for requests. budgets float32 [B]: no row's ε becomes more.
    record: tell which rows left out which tiles, for tests and calibration.
    """

    thresholds: Tensor
    budgets: Tensor | None = None
    record: bool = False
    scaled: bool = False


@dataclass(frozen=True, slots=True)
class Attended:
    """Results of rows [T]. Base-2 lse: log2 of the sum of 2^logit, sinks included; −inf if a row
    saw nothing. Of skipping alone: eps, ε of each row; counts: tiles that CTAs read, and those that
    they did not weigh; tiles_left_out: which rows did without which tiles.
    """

    out: Tensor  # [T, Hq, D], as queries
    lse2: Tensor  # float32 [T, Hq]
    eps: Tensor | None = None  # float32 [T, Hq]
    counts: Tensor | None = None  # int32 [B, Hq, 2] or [B, Hkv, 2]
    tiles_left_out: Tensor | None = None  # uint8 [T, Hq, tiles]


@dataclass(frozen=True, slots=True)
class Tiles:
    """Shapes of tiles: a function of the model, never of the batch."""

    width: int  # D, rounded up to a power of two
    tokens: int  # keys of a tile


def tiles_for(dtype: torch.dtype, head_dim: int) -> Tiles:
    """Half as many tokens where a key has 512 bytes or more: two stages have to fit into the shared
    memory of an A100.
    """
    width = max(16, 1 << (head_dim - 1).bit_length())
    return Tiles(width, 32 if width * dtype.itemsize >= 512 else 64)


def check_queries(q: Tensor, kv: PagedKv) -> int:
    """Query heads of a KV head."""
    if q.dim() != 3 or q.shape[2] != kv.head_dim or q.stride(2) != 1:
        raise ValueError(
            f"queries {tuple(q.shape)} must be [T, Hq, {kv.head_dim}], with stride 1 at the end"
        )
    if q.shape[1] % kv.kv_heads:
        raise ValueError(f"{q.shape[1]} query heads cannot share {kv.kv_heads} KV heads evenly")
    if q.dtype != kv.keys.dtype:
        raise ValueError(f"queries are {q.dtype}, keys {kv.keys.dtype}: cast one of them")
    return q.shape[1] // kv.kv_heads


def new_results(q: Tensor, kv: PagedKv, skipping: Skipping | None, ctas_of: int) -> Attended:
    """Room for results; counts for `ctas_of` heads of a sequence."""
    rows, heads, dim = q.shape
    out = q.new_empty(rows, heads, dim)
    lse2 = q.new_empty(rows, heads, dtype=torch.float32)
    if skipping is None:
        return Attended(out, lse2)
    batch = kv.lengths.shape[-1]
    for name in ("thresholds", "budgets"):
        given = getattr(skipping, name)
        if given is not None and (given.shape != (batch,) or given.dtype != torch.float32):
            raise ValueError(f"skipping.{name} must be float32 [{batch}], one of each sequence")
    record = None
    if skipping.record:
        tiles = -(-kv.tables.shape[-1] * kv.page // tiles_for(q.dtype, dim).tokens)
        record = q.new_zeros(rows, heads, tiles, dtype=torch.uint8)
    counts = q.new_zeros(batch, ctas_of, 2, dtype=torch.int32)
    return Attended(out, lse2, torch.empty_like(lse2), counts, record)


def skip_arguments(
    skipping: Skipping | None, results: Attended
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """thresholds, budgets and the record of a kernel."""
    if skipping is None:
        return None, None, None
    budgets = skipping.budgets
    if budgets is None:
        budgets = torch.full_like(skipping.thresholds, NO_BUDGET)
    return skipping.thresholds, budgets, results.tiles_left_out


def constants(
    kv: PagedKv, shape: AttentionShape, skipping: Skipping | None, group: int, tiles: Tiles
) -> dict[str, object]:
    """What a kernel is compiled for."""
    return {
        "GROUP": group,
        "D": kv.head_dim,
        "WIDTH": tiles.width,
        "PAGE": kv.page,
        "TILE": tiles.tokens,
        "SPLIT": SPLIT_TOKENS,
        "CAPPED": shape.softcap is not None,
        "WINDOWED": shape.window is not None,
        "SKIP": skipping is not None,
        "SCALED": skipping is not None and skipping.scaled,
        "RECORD": skipping is not None and skipping.record,
    }
