"""The forward pass of a decoder-only transformer: rows of tokens in, rows of hidden states out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.models.config import ModelConfig
from triptych.models.layers import Layer, Norm
from triptych.models.rope import Rope
from triptych.models.seams import DistantExperts, Experts, KvView
from triptych.models.storage import QuantReport
from triptych.models.taps import Tap, tell
from triptych_kernels import rotary_cos_sin
from triptych_kernels.cpu.linear import NativeLinear
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
        distant: DistantExperts | None = None,
        quantisation: QuantReport | None = None,
    ) -> None:
        self.config = config
        self.quantisation = quantisation  # None: the matrices are not int8 or int4
        self.embedding = embedding
        self.layers = layers
        self.norm = norm
        self.head = head
        self.experts = experts
        self.inv_freqs = inv_freqs
        self.distant = distant  # computes the layers that have no units in `experts`

    @property
    def is_native(self) -> bool:
        """Packed for the native kernels, which then run whole layers; else `forward` runs them."""
        return isinstance(self.head, NativeLinear)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: KvView,
        taps: Sequence[Tap] = (),
    ) -> Tensor:
        """token_ids, positions [M] int64 → float32 hidden states [M, H] behind the final norm.

        A tap sees the rows as they are given here.
        """
        hidden = self.embedding.row(token_ids)
        if self.config.embed_scale is not None:
            hidden = hidden * self.config.embed_scale
        return self.norm(self.layers_over(hidden, positions, kv, taps))

    def layers_over(
        self, hidden: Tensor, positions: Tensor, kv: KvView, taps: Sequence[Tap] = ()
    ) -> Tensor:
        """hidden [M, H] float32 through all layers, without the final norm."""
        rotary = self._rotary(positions)
        for index, layer in enumerate(self.layers):
            cos, sin = rotary[self.config.ropes[index]]
            rows = layer.attention(layer.before_attention(hidden), cos, sin, kv)
            hidden = hidden + self._branch(layer.behind_attention, rows)
            rows = self._feed_forward(index, layer.before_ffn(hidden))
            hidden = hidden + self._branch(layer.behind_ffn, rows)
            tell(taps, index, hidden)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [R, H], rows of what `forward` returned → float32 [R, V]."""
        logits = self.head(hidden)
        if self.config.logits_divisor != 1.0:
            logits = logits / self.config.logits_divisor
        cap = self.config.final_softcap
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _feed_forward(self, index: int, rows: Tensor) -> Tensor:
        """rows [M, H] (normed) → [M, H]."""
        mixture = self.layers[index].mixture
        if mixture is None:
            return self.experts(index, rows, None, None)
        routed = self.experts(index, rows, *mixture.choose(rows))
        shared = mixture.share(rows)
        return routed if shared is None else routed + shared

    def _branch(self, norm: Norm | None, rows: Tensor) -> Tensor:
        """What is added to the residual stream."""
        rows = rows if norm is None else norm(rows)
        scale = self.config.branch_scale
        return rows if scale == 1.0 else rows * scale

    def _rotary(self, positions: Tensor) -> dict[Rope, tuple[Tensor, Tensor]]:
        """Cosines and sines of the pass, once per distinct rope."""
        return {
            rope: rotary_cos_sin(positions, inv_freq, rope.attention_scaling)
            for rope, inv_freq in self.inv_freqs.items()
        }
