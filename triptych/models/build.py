"""Puts a model together from its configuration and a reader of weights.

This is the one place that knows how Hugging Face names the tensors of the supported families.
"""

from __future__ import annotations

from torch import Tensor

from triptych.models.config import ModelConfig
from triptych.models.gguf_source import ROPE_FACTORS
from triptych.models.layers import Attention, DenseFfn, Layer, LocalExperts, Norm
from triptych.models.model import Model
from triptych.models.rope import Rope
from triptych.models.seams import Experts
from triptych.models.weights import WeightReader
from triptych_kernels.packer import LinearLike, TableLike

# What multimodal checkpoints hold besides the text model.
_NOT_TEXT = ("vision_tower.", "multi_modal_projector.")


def build_model(config: ModelConfig, reader: WeightReader, experts: Experts | None) -> Model:
    """Without `experts` the FFNs are read too, and run in this process. Raises ModelError."""
    reader.skip(*_NOT_TEXT, *(f"model.{prefix}" for prefix in _NOT_TEXT))
    embedding, head = _read_vocabulary(reader, config)
    return build_body(config, reader, experts, embedding, head)


def build_body(
    config: ModelConfig,
    reader: WeightReader,
    experts: Experts | None,
    embedding: TableLike,
    head: LinearLike,
) -> Model:
    """All but the vocabulary's matrices, which are there already; ends the reading."""
    inv_freqs = _read_inv_freqs(reader, config)
    layers, ffns = [], []
    for index in range(config.num_layers):
        layers.append(_read_layer(reader, config, index))
        if experts is None:
            ffns.append(_read_ffn(reader, config, index))
        else:
            reader.skip(f"model.layers.{index}.mlp.")
    norm = _read_norm(reader, config, "model.norm", config.hidden_size)
    return Model(
        config,
        embedding=embedding,
        layers=layers,
        norm=norm,
        head=head,
        experts=LocalExperts(ffns) if experts is None else experts,
        inv_freqs=inv_freqs,
        quantisation=reader.finish(),
    )


def _read_vocabulary(reader: WeightReader, config: ModelConfig) -> tuple[TableLike, LinearLike]:
    """Embedding and head; tied ones are one matrix."""
    vocab_size, hidden_size = config.vocab_size, config.hidden_size
    name = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
    head = reader.linear([name], hidden_size, [vocab_size], bias=False, head=True)
    if not config.tie_word_embeddings:
        return reader.table("model.embed_tokens", vocab_size, hidden_size), head
    reader.skip("lm_head.")  # some writers store the shared weight twice
    return head, head


def _read_layer(reader: WeightReader, config: ModelConfig, index: int) -> Layer:
    prefix = f"model.layers.{index}"

    def norm(name: str) -> Norm:
        return _read_norm(reader, config, f"{prefix}.{name}", config.hidden_size)

    # "post_attention" is a different norm in Llama (before the FFN) and Gemma (behind attention).
    post = config.post_norms
    return Layer(
        attention=_read_attention(reader, config, index),
        before_attention=norm("input_layernorm"),
        behind_attention=norm("post_attention_layernorm") if post else None,
        before_ffn=norm("pre_feedforward_layernorm" if post else "post_attention_layernorm"),
        behind_ffn=norm("post_feedforward_layernorm") if post else None,
    )


def _read_attention(reader: WeightReader, config: ModelConfig, index: int) -> Attention:
    prefix = f"model.layers.{index}.self_attn"
    hidden_size, head_dim = config.hidden_size, config.head_dim
    q_size, kv_size = config.num_heads * head_dim, config.num_kv_heads * head_dim

    def head_norm(name: str) -> Norm | None:
        if not config.qk_norm:
            return None
        return _read_norm(reader, config, f"{prefix}.{name}", head_dim)

    return Attention(
        layer=index,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=head_dim,
        scale=config.attention_scale,
        window=config.windows[index],
        softcap=config.attention_softcap,
        qkv=reader.linear(
            [f"{prefix}.{name}_proj" for name in "qkv"],
            hidden_size,
            [q_size, kv_size, kv_size],
            bias=config.qkv_bias,
        ),
        output=reader.linear([f"{prefix}.o_proj"], q_size, [hidden_size], bias=config.output_bias),
        q_norm=head_norm("q_norm"),
        k_norm=head_norm("k_norm"),
    )


def _read_ffn(reader: WeightReader, config: ModelConfig, index: int) -> DenseFfn:
    prefix = f"model.layers.{index}.mlp"
    hidden_size, inner = config.hidden_size, config.intermediate_size
    names = [f"{prefix}.gate_proj", f"{prefix}.up_proj"]
    return DenseFfn(
        reader.linear(names, hidden_size, [inner, inner], bias=config.ffn_bias, gated=True),
        reader.linear([f"{prefix}.down_proj"], inner, [hidden_size], bias=config.ffn_bias),
        config.activation,
    )


def _read_norm(reader: WeightReader, config: ModelConfig, name: str, size: int) -> Norm:
    return Norm(reader.tensor(f"{name}.weight", size), config.rms_norm_eps, config.norm_offset)


def _read_inv_freqs(reader: WeightReader, config: ModelConfig) -> dict[Rope, Tensor]:
    """float32 [head_dim / 2] of every distinct rope. GGUF may bring a divisor per frequency."""
    inv_freqs = {rope: rope.inverse_frequencies(config.head_dim) for rope in set(config.ropes)}
    if reader.has(ROPE_FACTORS):
        factors = reader.tensor(ROPE_FACTORS, config.head_dim // 2)
        inv_freqs = {rope: inv_freq / factors for rope, inv_freq in inv_freqs.items()}
    return inv_freqs
