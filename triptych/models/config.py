"""What a model is, in one frozen object: everything the forward pass needs except the weights.

Families differ in values here, not in code: a Gemma layer is a Llama layer with more norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.models.rope import Rope

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str  # family: llama, mistral, qwen2, qwen3, gemma3
    vocab_size: int  # rows of the embedding; may exceed the tokenizer's vocabulary
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # divides num_heads
    head_dim: int  # need not be hidden_size / num_heads
    max_model_len: int  # tokens, prompt and answer together
    rms_norm_eps: float
    ropes: tuple[Rope, ...]  # per layer
    windows: tuple[int | None, ...]  # per layer: positions a row sees, itself included; None: all
    attention_scale: float
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool
    activation: Activation
    qkv_bias: bool
    output_bias: bool  # of the attention's output projection
    ffn_bias: bool
    qk_norm: bool = False  # RMS norm of every query and key head
    post_norms: bool = False  # norms also behind attention and FFN, before the residual is added
    norm_offset: float = 0.0  # added to the stored norm weights
    embed_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
