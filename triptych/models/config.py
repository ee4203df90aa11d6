"""What a model is, in one frozen object: everything the forward pass needs except the weights.

Families differ in values here, not in code: a Gemma layer is a Llama layer with more norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from triptych.models.moe import MoeConfig
from triptych.models.rope import Rope

# clamped_swiglu: gpt-oss, (up + 1) · gate · sigmoid(1.702 gate), gate ≤ 7 and |up| ≤ 7
Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]


@dataclass(frozen=True, slots=True)
class LatentConfig:
    """Sizes of MLA. A head is rope_dim + plain_dim numbers wide."""

    query_rank: int | None  # none: queries have a projection of their own
    kv_rank: int
    rope_dim: int  # numbers of a head that are rotated; all key heads share theirs
    plain_dim: int  # the others
    value_dim: int  # at most as wide as a head
    interleaved: bool  # as stored, rotary pairs are neighbours; else halves

    @property
    def head_dim(self) -> int:
        return self.rope_dim + self.plain_dim


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Sizes of an indexer, which chooses the tokens that a row attends to; see token_index."""

    num_heads: int
    head_dim: int  # the first numbers of a head are rotated, as many as of the attention's
    top_k: int  # tokens that a row attends to at most


@dataclass(frozen=True, slots=True)
class NsaConfig:
    """Sizes of native sparse attention, which chooses blocks of tokens; see nsa."""

    block_tokens: int  # of a block, as it is averaged and as it is chosen
    top_k: int  # blocks that a row reads token by token
    window: int  # positions that a row sees in any case, itself included; 0: there is no such part


@dataclass(frozen=True, slots=True)
class DeltaConfig:
    """Sizes of gated delta layers, which keep a state in place of KV; see delta."""

    layers: tuple[bool, ...]  # per layer: such a one, or attention
    key_heads: int  # divides value_heads; query heads are as many
    value_heads: int
    key_dim: int
    value_dim: int
    conv_tokens: int  # rows that the convolution sees, a row's own included

    @property
    def values(self) -> int:
        """Numbers of all value heads."""
        return self.value_heads * self.value_dim

    @property
    def mixed_dim(self) -> int:
        """Numbers of all query, key and value heads, which the convolution runs over."""
        return 2 * self.key_heads * self.key_dim + self.values

    @property
    def state_bytes(self) -> int:
        """What a layer keeps, float32: the number of rows that it holds, the last of them before
        the convolution, and the state.
        """
        history = (self.conv_tokens - 1) * self.mixed_dim
        return 4 * (1 + history + self.values * self.key_dim)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    architecture: str  # family: llama, mistral, qwen2, mixtral, …
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
    qk_norm_whole: bool = (
        False  # that norm is over all query heads of a row at once, and all key heads
    )
    post_norms: bool = False  # norms also behind attention and FFN, before the residual is added
    norm_offset: float = 0.0  # added to the stored norm weights
    embed_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    logits_divisor: float = 1.0  # of the logits, before their soft cap (Granite)
    moe: MoeConfig | None = None  # none: every layer has one dense FFN
    branch_scale: float = 1.0  # of what attention and FFN add to the residual stream (Granite)
    latent: LatentConfig | None = None  # heads come out of low ranks; then all heads have own KV
    index: IndexConfig | None = None  # none: a row attends to all that its window holds
    nsa: NsaConfig | None = None  # none: attention has one part; else three, and gates
    delta: DeltaConfig | None = None  # none: every layer attends
    rotary_dim: int | None = None  # numbers of a head that are rotated; none: all, or as MLA says
    output_gate: bool = False  # sigmoids weigh what heads attended to; stored beside queries
    sinks: bool = False  # a learned logit of each head takes its share of the softmax
    draft_layers: int = 0  # stored behind the model's own, to draft with; not read

    @property
    def rope_dim(self) -> int:
        """Numbers of a head, the first ones, that are rotated."""
        if self.rotary_dim is not None:
            return self.rotary_dim
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def state_bytes(self) -> int:
        """Of a layer that keeps a state in place of KV; 0: there is none."""
        return 0 if self.delta is None else self.delta.state_bytes

    @property
    def chooses(self) -> bool:
        """Whether a row attends to what it chooses by itself."""
        return self.index is not None or self.nsa is not None

    @property
    def index_dim(self) -> int:
        """Numbers of a token's index key, see IndexConfig; 0: it has none."""
        return 0 if self.index is None else self.index.head_dim

    @property
    def value_dim(self) -> int:
        """Numbers of a value head, the first ones, that are not always zero."""
        return self.head_dim if self.latent is None else self.latent.value_dim
