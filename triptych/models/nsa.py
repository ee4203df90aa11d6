"""Native sparse attention (NSA, arXiv 2502.11089): how a layer's rows weigh its three parts.

What the parts are is told in `triptych_kernels.reference_nsa`. They share queries, keys and values,
as in flash-linear-attention, so nothing is kept of a token beside its KV: the means of blocks are
made of that, anew in every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.config import ModelConfig, NsaConfig
from triptych.models.seams import NsaRows
from triptych.models.weights import WeightReader
from triptych_kernels.packer import LinearLike

NUM_PARTS = 3


@dataclass(frozen=True, slots=True)
class Branches:
    """See Chooser."""

    gate: LinearLike  # [Hq·3, hidden] float32: a head's three lie together
    sizes: NsaConfig

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, /) -> NsaRows:
        # Composed: torch.sigmoid's bits depend on where an element lies.
        gates = 1.0 / (1.0 + torch.exp(-self.gate(rows)))
        return NsaRows(
            gates.view(len(rows), -1, NUM_PARTS),
            self.sizes.block_tokens,
            self.sizes.top_k,
            self.sizes.window,
        )


def read_branches(
    reader: WeightReader, config: ModelConfig, sizes: NsaConfig, prefix: str
) -> Branches:
    """`prefix` of the layer's attention. Raises ModelError."""
    return Branches(
        gate=reader.linear(
            [f"{prefix}.g_proj"],
            config.hidden_size,
            [NUM_PARTS * config.num_heads],
            bias=False,
            exact=True,
        ),
        sizes=sizes,
    )
