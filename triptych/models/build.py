"""Puts a model together from its configuration and a reader of weights.

Here and in `unit_names` it is known how Hugging Face names the tensors of the supported families.
"""

from __future__ import annotations

import torch
from torch import Tensor

from triptych.models.config import ModelConfig
from triptych.models.delta import read_delta
from triptych.models.gguf_source import ROPE_FACTORS
from triptych.models.latent_weights import read_latent
from triptych.models.layers import (
    Attention,
    Chooser,
    DenseFfn,
    Heads,
    Layer,
    LocalExperts,
    Mixer,
    Mixture,
    Norm,
)
from triptych.models.model import Model
from triptych.models.nsa import read_branches
from triptych.models.rope import Rope
from triptych.models.seams import DistantExperts
from triptych.models.token_index import read_index
from triptych.models.unit_names import mixture_names
from triptych.models.units import may_leave, num_units, read_shared, read_unit, unit_prefixes
from triptych.models.weights import Part, WeightReader
from triptych_kernels.packer import LinearLike, TableLike

# What checkpoints hold besides the text model: sight, and layers to draft with.
_NOT_TEXT = ("vision_tower.", "multi_modal_projector.", "mtp.")


def build_model(
    config: ModelConfig, reader: WeightReader, distant: DistantExperts | None = None
) -> Model:
    """With `distant` given, the units that run there are not read. Raises ModelError."""
    reader.skip(*_NOT_TEXT, *(f"model.{prefix}" for prefix in _NOT_TEXT))
    embedding, head = _read_vocabulary(reader, config)
    return build_body(config, reader, distant, embedding, head)


def build_body(
    config: ModelConfig,
    reader: WeightReader,
    distant: DistantExperts | None,
    embedding: TableLike,
    head: LinearLike,
) -> Model:
    """All but the vocabulary's matrices, which are there already; ends the reading."""
    inv_freqs = _read_inv_freqs(reader, config)
    drafting = range(config.num_layers, config.num_layers + config.draft_layers)
    reader.skip(*(f"model.layers.{index}." for index in drafting))
    layers, units = list[Layer](), list[list[DenseFfn]]()
    for index in range(config.num_layers):
        layers.append(_read_layer(reader, config, index))
        if distant is not None and may_leave(config, index):
            reader.skip(*unit_prefixes(config, index))
            units.append([])
            continue
        experts_of = range(num_units(config, index))
        units.append([read_unit(reader, config, index, expert) for expert in experts_of])
    norm = _read_norm(reader, config, "model.norm", config.hidden_size)
    return Model(
        config,
        embedding=embedding,
        layers=layers,
        norm=norm,
        head=head,
        experts=LocalExperts(units, reader.cell_dtype),
        distant=distant,
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
        attention=_read_mixer(reader, config, index),
        before_attention=norm("input_layernorm"),
        behind_attention=norm("post_attention_layernorm") if post else None,
        before_ffn=norm("pre_feedforward_layernorm" if post else "post_attention_layernorm"),
        behind_ffn=norm("post_feedforward_layernorm") if post else None,
        mixture=_read_mixture(reader, config, index),
    )


def _read_mixer(reader: WeightReader, config: ModelConfig, index: int) -> Mixer:
    if config.delta is not None and config.delta.layers[index]:
        return read_delta(reader, config, config.delta, index)
    return _read_attention(reader, config, index)


def _read_attention(reader: WeightReader, config: ModelConfig, index: int) -> Attention:
    prefix = f"model.layers.{index}.self_attn"

    def head_norm(name: str, heads: int) -> Norm | None:
        if not config.qk_norm:
            return None
        heads = heads if config.qk_norm_whole else 1
        return _read_norm(reader, config, f"{prefix}.{name}", heads * config.head_dim)

    if config.output_gate:
        qkv, gate = _read_gated_heads(reader, config, prefix)
    else:
        qkv, gate = _read_heads(reader, config, prefix), None
    return Attention(
        layer=index,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        scale=config.attention_scale,
        window=config.windows[index],
        softcap=config.attention_softcap,
        qkv=qkv,
        output=reader.linear(
            [f"{prefix}.o_proj"],
            config.num_heads * config.value_dim,
            [config.hidden_size],
            bias=config.output_bias,
        ),
        q_norm=head_norm("q_norm", config.num_heads),
        k_norm=head_norm("k_norm", config.num_kv_heads),
        value_dim=config.value_dim,
        sinks=reader.tensor(f"{prefix}.sinks", config.num_heads) if config.sinks else None,
        index=_read_chooser(reader, config, qkv, prefix),
        output_gate=gate,
    )


def _read_heads(reader: WeightReader, config: ModelConfig, prefix: str) -> Heads:
    if config.latent is not None:
        return read_latent(reader, config, config.latent, prefix)
    q_size, kv_size = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    names = [f"{prefix}.{name}_proj" for name in "qkv"]
    sizes = [q_size, kv_size, kv_size]
    return reader.linear(names, config.hidden_size, sizes, bias=config.qkv_bias)


def _read_gated_heads(
    reader: WeightReader, config: ModelConfig, prefix: str
) -> tuple[Heads, LinearLike]:
    """All heads, and the gates: of each head stored behind its query."""
    q_size, kv_size = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    query, key, value = (
        Part(f"{prefix}.{name}_proj.weight", rows)
        for name, rows in (("q", 2 * q_size), ("k", kv_size), ("v", kv_size))
    )
    stored = torch.arange(2 * q_size).view(config.num_heads, 2, -1)
    rows = torch.cat([stored[:, 0].flatten(), 2 * q_size + torch.arange(2 * kv_size)])
    heads = reader.joined([query, key, value], config.hidden_size, order=rows)
    gate = reader.joined([query], config.hidden_size, order=stored[:, 1].flatten())
    return heads, gate


def _read_chooser(
    reader: WeightReader, config: ModelConfig, heads: Heads, prefix: str
) -> Chooser | None:
    if config.nsa is not None:
        return read_branches(reader, config, config.nsa, prefix)
    return read_index(reader, config, heads, prefix)


def _read_mixture(reader: WeightReader, config: ModelConfig, index: int) -> Mixture | None:
    """Router and shared expert; none for a dense layer."""
    moe = config.moe
    if moe is None or not moe.layers[index]:
        return None
    names, prefix = mixture_names(config), f"model.layers.{index}"
    hidden_size, experts = config.hidden_size, moe.routing.num_experts

    def exact(name: str, rows: int, bias: bool) -> LinearLike:
        return reader.linear([f"{prefix}.{name}"], hidden_size, [rows], bias=bias, exact=True)

    correction = f"{prefix}.{names.correction}"
    return Mixture(
        routing=moe.routing,
        router=exact(names.router, experts, moe.router_bias),
        correction=reader.tensor(correction, experts) if moe.correction_bias else None,
        shared=read_shared(reader, config, index),
        shared_gate=exact(names.shared_gate, 1, False) if moe.shared_gate else None,
    )


def _read_norm(reader: WeightReader, config: ModelConfig, name: str, size: int) -> Norm:
    return Norm(reader.tensor(f"{name}.weight", size), config.rms_norm_eps, config.norm_offset)


def _read_inv_freqs(reader: WeightReader, config: ModelConfig) -> dict[Rope, Tensor]:
    """float32 [rope_dim / 2] of every distinct rope. GGUF may bring a divisor per frequency."""
    inv_freqs = {rope: rope.inverse_frequencies(config.rope_dim) for rope in set(config.ropes)}
    if reader.has(ROPE_FACTORS):
        factors = reader.tensor(ROPE_FACTORS, config.rope_dim // 2)
        inv_freqs = {rope: inv_freq / factors for rope, inv_freq in inv_freqs.items()}
    return inv_freqs
