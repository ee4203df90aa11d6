"""The least time that a measurement could have taken on this machine, and so how good it was.

A step's least time is the larger of two:

* bytes / read bandwidth. Bytes are the weights in their stored form, once per step however many
  rows it has (the head is read like any other matrix; embedding rows are not counted), and the
  keys and values of all positions that the rows see, once per sequence:
  `layers × 2 × kv_heads × head_dim × item` per position.
* FLOPs / matmul rate. FLOPs are 2 per weight and row, and
  `layers × 4 × heads × head_dim` per row and position that it sees (scores, then values).

int8 and int4 weights count with their scales and lows (two float16 per group), and with a head that
stays at 8 bits: `bits_per_weight` of the loaded model. A decode step has one row per sequence, each
with a row of logits. A prompt counts FLOPs only (its bytes are negligible): all rows through the
layers, one row through the head. Norms, rotary embedding and sampling are not counted: they are
what a good engine hides.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a dense model costs."""

    layer_weights: int  # of all layers together
    head_weights: int
    kv_bytes: int  # of one position, all layers
    attention_flops: int  # of one row and one position that it sees, all layers
    weight_bytes: float  # stored form of one weight, scales included, on average


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine reached in the same minute."""

    read_gb_s: float
    tflop_s: float

    def least_seconds(self, num_bytes: float, flops: float) -> float:
        return max(num_bytes / (self.read_gb_s * 1e9), flops / (self.tflop_s * 1e12))


def model_sizes(model: ModelConfig, bits_per_weight: float, kv_item_bytes: int) -> Sizes:
    heads = model.num_heads + 2 * model.num_kv_heads
    attention = model.hidden_size * model.head_dim * (heads + model.num_heads)
    ffn = 3 * model.hidden_size * model.intermediate_size
    return Sizes(
        layer_weights=model.num_layers * (attention + ffn),
        head_weights=model.vocab_size * model.hidden_size,
        kv_bytes=model.num_layers * 2 * model.num_kv_heads * model.head_dim * kv_item_bytes,
        attention_flops=model.num_layers * 4 * model.num_heads * model.head_dim,
        weight_bytes=bits_per_weight / 8,
    )


def decode_seconds(
    sizes: Sizes, rates: Rates, *, batch: int, context: float, rows: int = 1
) -> float:
    """Of one step: `rows` rows for each of `batch` sequences that hold `context` positions."""
    weights = sizes.layer_weights + sizes.head_weights
    num_bytes = weights * sizes.weight_bytes + batch * context * sizes.kv_bytes
    flops = batch * rows * (2 * weights + context * sizes.attention_flops)
    return rates.least_seconds(num_bytes, flops)


def attention_seconds(rates: Rates, *, kv_bytes: int, flops: int, rows: int, context: int) -> float:
    """Of the kernel alone, for rows at the end of one sequence; per position and row as in Sizes,
    but of one layer.
    """
    return rates.least_seconds(context * kv_bytes, rows * context * flops)


def prefill_seconds(sizes: Sizes, rates: Rates, tokens: int) -> float:
    """Of one prompt, to its first token."""
    seen = tokens * (tokens + 1) / 2  # row and position pairs of causal attention
    flops = 2 * (tokens * sizes.layer_weights + sizes.head_weights) + seen * sizes.attention_flops
    return rates.least_seconds(0, flops)
