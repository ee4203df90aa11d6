"""The families whose every layer has one dense FFN."""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import ModelConfig
from triptych.models.family_parts import common_config, layer_windows
from triptych.models.fields import Fields
from triptych.models.rope import Rope, parse_rope


def parse_llama(fields: Fields) -> ModelConfig:
    """Llama 2 and 3, SmolLM2, and all else that calls itself a Llama."""
    bias = fields.flag("attention_bias", False)
    config = common_config(fields, "llama")
    return replace(config, qkv_bias=bias, output_bias=bias, ffn_bias=fields.flag("mlp_bias", False))


def parse_mistral(fields: Fields) -> ModelConfig:
    config = common_config(fields, "mistral")
    window = fields.optional_size("sliding_window")
    return replace(config, windows=(window,) * config.num_layers)


def parse_qwen2(fields: Fields) -> ModelConfig:
    config = common_config(fields, "qwen2")
    return replace(config, qkv_bias=True, windows=_qwen_windows(fields, config.num_layers))


def parse_qwen3(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    config = common_config(fields.with_defaults(head_dim=128), "qwen3")
    windows = _qwen_windows(fields, config.num_layers)
    return replace(config, qk_norm=True, qkv_bias=bias, output_bias=bias, windows=windows)


def parse_gemma3(fields: Fields) -> ModelConfig:
    """Gemma 3's text model, alone or inside the multimodal checkpoint (`text_config`)."""
    eos_token_id = fields.get("eos_token_id")
    fields = fields.section("text_config") or fields
    fields = fields.with_defaults(
        vocab_size=262_208,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        hidden_act=fields.text("hidden_activation", "gelu_pytorch_tanh"),
        max_position_embeddings=131_072,
        sliding_window=4096,
        tie_word_embeddings=True,
        eos_token_id=1 if eos_token_id is None else eos_token_id,
    )
    if fields.flag("use_bidirectional_attention", False):
        raise fields.error("use_bidirectional_attention", "embedding models are not supported")
    config = common_config(fields, "gemma3")
    period = fields.size("sliding_window_pattern", 6)
    sliding = [(layer + 1) % period != 0 for layer in range(config.num_layers)]
    windows = layer_windows(fields, fields.size("sliding_window"), sliding)
    far, near = _gemma_ropes(fields, config.max_model_len)
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        windows=windows,
        ropes=tuple(far if window is None else near for window in windows),
        attention_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        post_norms=True,
        norm_offset=1.0,
        embed_scale=config.hidden_size**0.5,
        attention_softcap=fields.optional_positive("attn_logit_softcapping"),
        final_softcap=fields.optional_positive("final_logit_softcapping"),
    )


def _gemma_ropes(fields: Fields, max_model_len: int) -> tuple[Rope, Rope]:
    """Of layers that see everything, and of sliding ones."""
    nested = fields.section("rope_parameters") or Fields({}, fields.origin)
    none = Fields({}, fields.origin)
    far = nested.section("full_attention") or fields.section("rope_scaling") or none
    near = nested.section("sliding_attention") or none
    return (
        parse_rope(far, fields.positive("rope_theta", 1_000_000.0), max_model_len),
        parse_rope(near, fields.positive("rope_local_base_freq", 10_000.0), max_model_len),
    )


def _qwen_windows(fields: Fields, num_layers: int) -> tuple[int | None, ...]:
    if not fields.flag("use_sliding_window", False):
        return (None,) * num_layers
    first = fields.size("max_window_layers", 28, minimum=0)
    window = fields.optional_size("sliding_window")
    sliding = [window is not None and layer >= first for layer in range(num_layers)]
    return layer_windows(fields, window, sliding)
