"""NSA (arXiv 2502.11089) as flash-linear-attention writes it: a Llama under other names, whose
attention has three parts with a gate each.

Keys, defaults and tensor names are those of `fla.models.nsa`; nobody else's checkpoints are known.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import ModelConfig, NsaConfig
from triptych.models.family_parts import common_config
from triptych.models.fields import Fields

_ALWAYS_CHOSEN = 3  # blocks: the first, a row's own, and the one before it
_INNER_STEP = 256  # an FFN's size that follows from `hidden_ratio` is a multiple of it

# What stands under `model.` and `model.layers.{layer}.`, and what other families call it.
_COMMON_NAMES = {
    "embeddings": "embed_tokens",
    "attn_norm": "input_layernorm",
    "attn": "self_attn",
    "mlp_norm": "post_attention_layernorm",
}


def parse_nsa(fields: Fields) -> ModelConfig:
    """Raises ModelError."""
    own_kv = fields.is_null("num_kv_heads")  # for each head; an absent key means something else
    fields = fields.with_defaults(
        hidden_size=2048,
        num_hidden_layers=24,
        num_heads=64,
        head_dim=32,
        max_position_embeddings=2048,
        vocab_size=32000,
        eos_token_id=2,
    )
    if fields.get("attnres_block_size") is not None:
        raise fields.error("attnres_block_size", "residuals that attend are not supported")
    heads = fields.size("num_heads")
    kv_heads = heads if own_kv else fields.size("num_kv_heads", 4)
    if heads % kv_heads:
        raise fields.error("num_kv_heads", f"{kv_heads} does not divide {heads}")
    common = common_config(
        fields.replaced(
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=_inner_size(fields),
            rms_norm_eps=fields.positive("norm_eps", 1e-6),
            hidden_act=_activation(fields),
        ),
        "nsa",
    )
    return replace(common, qkv_bias=fields.flag("qkv_bias", False), nsa=_nsa(fields))


def common_name(stored: str) -> str:
    """What other families call a tensor that is stored under this name."""
    return ".".join(_COMMON_NAMES.get(part, part) for part in stored.split("."))


def _nsa(fields: Fields) -> NsaConfig:
    top_k = fields.size("block_counts", 16)
    if top_k < _ALWAYS_CHOSEN:
        raise fields.error(
            "block_counts",
            f"{top_k} blocks, fewer than the {_ALWAYS_CHOSEN} that are always chosen: the first, a "
            "row's own, and the one before it",
        )
    return NsaConfig(
        block_tokens=fields.size("block_size", 64),
        top_k=top_k,
        window=fields.size("window_size", 512, minimum=0),
    )


def _inner_size(fields: Fields) -> int:
    size = fields.optional_size("intermediate_size")
    if size is not None:
        return size
    size = fields.size("hidden_size") * fields.size("hidden_ratio", 4) * 2 // 3
    return -(-size // _INNER_STEP) * _INNER_STEP


def _activation(fields: Fields) -> str:
    name = fields.text("hidden_act", "swish")
    if name != "swish":
        raise fields.error("hidden_act", f"{name!r} is not supported; supported: swish")
    return "silu"
