"""A short text on its way through the dense model, one layer at a time.

Routers are made from what they will see. Each layer's weights are at hand once, while it is
written, so no more than one layer of the dense model is ever in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from triptych.models.config import Activation, ModelConfig
from triptych_kernels import apply_rotary, gelu_tanh_mul, rms_norm, rotary_cos_sin, silu_mul

_GATES = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}


class Ffn(NamedTuple):
    """A gated FFN without bias: down(act(gate(x)) × up(x)). float32."""

    gate: Tensor  # [I, H]
    up: Tensor  # [I, H]
    down: Tensor  # [H, I]

    def inner_rows(self, rows: Tensor, activation: Activation) -> Tensor:
        """rows [T, H] → what `down` is given, [T, I]."""
        return _GATES[activation](linear(rows, self.gate), linear(rows, self.up))


class Probe:
    """Rows [T, H] float32 of one sequence, its first position is 0. Call `attend` and `feed` for
    layer after layer.
    """

    def __init__(self, config: ModelConfig, rows: Tensor) -> None:
        self._config = config
        self._rows = rows
        positions = torch.arange(rows.shape[0])
        rope = config.ropes[0]
        inv_freq = rope.inverse_frequencies(config.head_dim)
        self._cos, self._sin = rotary_cos_sin(positions, inv_freq, rope.attention_scaling)
        self._mask = positions[:, None] >= positions
        if config.windows[0] is not None:
            self._mask &= positions[:, None] - positions < config.windows[0]

    def attend(self, layer: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Attention of a layer, `weights` by their full names; → the FFN's input, normed [T, H]."""
        prefix = f"model.layers.{layer}"
        tensors = {
            name.removeprefix(f"{prefix}."): tensor.float() for name, tensor in weights.items()
        }
        normed = self._norm(self._rows, tensors["input_layernorm.weight"])
        q, k, v = (self._heads(normed, tensors, name) for name in "qkv")
        if self._config.qk_norm:
            q = self._norm(q, tensors["self_attn.q_norm.weight"])
            k = self._norm(k, tensors["self_attn.k_norm.weight"])
        q, k = apply_rotary(q, self._cos, self._sin), apply_rotary(k, self._cos, self._sin)
        mixed = scaled_dot_product_attention(
            q.transpose(0, 1),
            k.transpose(0, 1),
            v.transpose(0, 1),
            attn_mask=self._mask,
            scale=self._config.attention_scale,
            enable_gqa=True,
        )
        rows = mixed.transpose(0, 1).flatten(1)
        self._rows = self._rows + _project(rows, tensors, "self_attn.o_proj")
        return self._norm(self._rows, tensors["post_attention_layernorm.weight"])

    def feed(self, output: Tensor) -> None:
        """What the layer's FFN made of its input, [T, H]."""
        self._rows = self._rows + output

    def _heads(self, rows: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
        heads = _project(rows, tensors, f"self_attn.{name}_proj")
        return heads.view(len(rows), -1, self._config.head_dim)

    def _norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(rows, weight, self._config.rms_norm_eps)


def _project(rows: Tensor, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return linear(rows, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
