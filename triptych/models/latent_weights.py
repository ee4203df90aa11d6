"""Reads the projections of MLA, in an order that makes heads as all attention here knows them.

The rotary numbers come first in a head, and the two of a pair stand half of them apart: queries and
keys are permuted alike, so their products are of the same numbers. Values are as wide as keys, with
zeros behind.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.models.config import LatentConfig, ModelConfig
from triptych.models.latent import LatentHeads
from triptych.models.layers import Norm
from triptych.models.weights import Part, WeightReader

_NO_ROW = -1  # a row of zeros
_EPS = 1e-6  # these norms have their own, whatever the configuration says


def read_latent(
    reader: WeightReader, config: ModelConfig, latent: LatentConfig, prefix: str
) -> LatentHeads:
    """`prefix` of the layer's attention. Raises ModelError."""
    heads, hidden_size = config.num_heads, config.hidden_size
    down = {"kv_a_proj_with_mqa": latent.kv_rank + latent.rope_dim}
    query, query_width, query_norm = "q_proj", hidden_size, None
    if latent.query_rank is not None:
        down = {"q_a_proj": latent.query_rank, **down}
        query, query_width = "q_b_proj", latent.query_rank
        query_norm = _read_norm(reader, f"{prefix}.q_a_layernorm", latent.query_rank)

    def parts(kind: str, rows: dict[str, int]) -> list[Part]:
        return [Part(f"{prefix}.{name}.{kind}", count) for name, count in rows.items()]

    return LatentHeads(
        heads,
        latent.rope_dim,
        down=reader.joined(
            parts("weight", down),
            hidden_size,
            parts("bias", down) if config.qkv_bias else (),
            order=down_rows(latent),
        ),
        query_up=reader.joined(
            parts("weight", {query: heads * latent.head_dim}),
            query_width,
            order=query_rows(latent, heads),
        ),
        kv_up=reader.joined(
            parts("weight", {"kv_b_proj": heads * _kv_rows_of_head(latent)}),
            latent.kv_rank,
            order=kv_rows(latent, heads),
        ),
        query_norm=query_norm,
        kv_norm=_read_norm(reader, f"{prefix}.kv_a_layernorm", latent.kv_rank),
    )


def query_rows(latent: LatentConfig, num_heads: int) -> Tensor:
    """Of the stored query projection, [heads × (plain | rotary)], the rows in our order, int64."""
    stored = torch.arange(num_heads * latent.head_dim).view(num_heads, -1)
    plain = torch.arange(latent.plain_dim)
    return stored[:, torch.cat([latent.plain_dim + _rotary_rows(latent), plain])].flatten()


def down_rows(latent: LatentConfig) -> Tensor:
    """Of the stored compressions, [query rank | KV rank | rotary key], the rows in our order."""
    plain = (latent.query_rank or 0) + latent.kv_rank
    return torch.cat([torch.arange(plain), plain + _rotary_rows(latent)])


def kv_rows(latent: LatentConfig, num_heads: int) -> Tensor:
    """Of the stored KV expansion, [heads × (plain key | value)], the rows in our order: all key
    heads, then all value heads; _NO_ROW where a head has nothing.
    """
    stored = torch.arange(num_heads * _kv_rows_of_head(latent)).view(num_heads, -1)
    keys, values = stored[:, : latent.plain_dim], stored[:, latent.plain_dim :]
    behind = latent.head_dim - latent.value_dim
    wide = (pad(keys, (latent.rope_dim, 0), value=_NO_ROW), pad(values, (0, behind), value=_NO_ROW))
    return torch.cat(wide).flatten()


def _kv_rows_of_head(latent: LatentConfig) -> int:
    """Of the stored KV expansion."""
    return latent.plain_dim + latent.value_dim


def _rotary_rows(latent: LatentConfig) -> Tensor:
    """Numbers that stand in pairs, as halves: first of all pairs, then second of all pairs."""
    rows = torch.arange(latent.rope_dim)
    return rows.view(-1, 2).t().flatten() if latent.interleaved else rows


def _read_norm(reader: WeightReader, name: str, size: int) -> Norm:
    return Norm(reader.tensor(f"{name}.weight", size), _EPS, 0.0)
