"""The forward pass of a decoder-only transformer: rows of tokens in, rows of hidden states out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from triptych.models.config import ModelConfig
from triptych.models.layers import Layer, Norm
from triptych.models.rope import Rope
from triptych.models.seams import Experts, KvView
from triptych.models.storage import QuantReport
from triptych_kernels import rotary_cos_sin
from triptych_kernels.packer import LinearLike, TableLike


class Model:
    """Weights and the order they are applied in. Stateless: everything of a request is in the KV.

    A row's result depends on its token, its position and what `kv` lets it see, and on nothing else
    (given a number of rows that is a multiple of 16; callers pad with rows of any valid token).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: TableLike,
        layers: Sequence[Layer],
        norm: Norm,
        head: LinearLike,
        experts: Experts,
        inv_freqs: dict[Rope, Tensor],
        quantisation: QuantReport | None = None,
    ) -> None:
        self.config = config
        self.quantisation = quantisation  # None: the matrices are float32 or bfloat16
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._head = head
        self._experts = experts
        self._inv_freqs = inv_freqs

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: KvView,
        after_layer: Callable[[int], None] | None = None,
    ) -> Tensor:
        """token_ids, positions [M] int64 → float32 hidden states [M, H] behind the final norm.

        `after_layer(i)` is called when layer i is through: its KV is final, later layers are not.
        """
        hidden = self._embedding.row(token_ids)
        if self.config.embed_scale is not None:
            hidden = hidden * self.config.embed_scale
        rotary = self._rotary(positions)
        for index, layer in enumerate(self._layers):
            cos, sin = rotary[self.config.ropes[index]]
            rows = layer.attention(layer.before_attention(hidden), cos, sin, kv)
            hidden = hidden + _optional(layer.behind_attention, rows)
            rows = self._experts(index, layer.before_ffn(hidden), None, None)
            hidden = hidden + _optional(layer.behind_ffn, rows)
            if after_layer is not None:
                after_layer(index)
        return self._norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H], rows of what `forward` returned → float32 [R, V]."""
        logits = self._head(hidden)
        cap = self.config.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _rotary(self, positions: Tensor) -> dict[Rope, tuple[Tensor, Tensor]]:
        """Cosines and sines of the pass, once per distinct rope."""
        return {
            rope: rotary_cos_sin(positions, inv_freq, rope.attention_scaling)
            for rope, inv_freq in self._inv_freqs.items()
        }


def _optional(norm: Norm | None, rows: Tensor) -> Tensor:
    return rows if norm is None else norm(rows)
