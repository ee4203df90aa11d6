"""The supported families: how each one's config.json becomes a ModelConfig.

Keys and defaults are those of Hugging Face's configuration classes, old spelling (`rope_theta`,
`rope_scaling`) and new (`rope_parameters`). A new family is one function and one table entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from triptych.errors import ModelError
from triptych.models.config import Activation, ModelConfig
from triptych.models.fields import Fields
from triptych.models.rope import Rope, parse_rope

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def parse_config(fields: Fields) -> ModelConfig:
    """Raises ModelError naming the file and the key, or the architecture and the supported ones."""
    architectures = fields.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise fields.error("architectures", f"expected a list of one name, found {architectures!r}")
    parse = _FAMILIES.get(architectures[0])
    if parse is None:
        raise ModelError(
            f"{fields.origin}: architecture {architectures[0]!r} is not supported; "
            f"supported: {', '.join(_FAMILIES)}"
        )
    if fields.get("quantization_config") is not None:
        raise fields.error(
            "quantization_config",
            "quantised checkpoints are supported as GGUF only; or use the original weights",
        )
    return parse(fields)


def parse_llama(fields: Fields) -> ModelConfig:
    """Llama 2 and 3, SmolLM2, and all else that calls itself a Llama."""
    bias = fields.flag("attention_bias", False)
    config = _common(fields, "llama")
    return replace(config, qkv_bias=bias, output_bias=bias, ffn_bias=fields.flag("mlp_bias", False))


def parse_mistral(fields: Fields) -> ModelConfig:
    config = _common(fields, "mistral")
    window = fields.optional_size("sliding_window")
    return replace(config, windows=(window,) * config.num_layers)


def parse_qwen2(fields: Fields) -> ModelConfig:
    config = _common(fields, "qwen2")
    return replace(config, qkv_bias=True, windows=_qwen_windows(fields, config.num_layers))


def parse_qwen3(fields: Fields) -> ModelConfig:
    bias = fields.flag("attention_bias", False)
    config = _common(fields.with_defaults(head_dim=128), "qwen3")
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
    config = _common(fields, "gemma3")
    period = fields.size("sliding_window_pattern", 6)
    sliding = [(layer + 1) % period != 0 for layer in range(config.num_layers)]
    windows = _windows(fields, fields.size("sliding_window"), sliding)
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


_FAMILIES: dict[str, Callable[[Fields], ModelConfig]] = {
    "LlamaForCausalLM": parse_llama,
    "MistralForCausalLM": parse_mistral,
    "Qwen2ForCausalLM": parse_qwen2,
    "Qwen3ForCausalLM": parse_qwen3,
    "Gemma3ForCausalLM": parse_gemma3,
    "Gemma3ForConditionalGeneration": parse_gemma3,
}


def _common(fields: Fields, architecture: str) -> ModelConfig:
    """What all families spell alike: a Llama without bias whose every layer sees everything."""
    hidden_size, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise fields.error("num_key_value_heads", f"{num_kv_heads} does not divide {num_heads}")
    head_dim = fields.size("head_dim", max(hidden_size // num_heads, 1))
    if head_dim % 2:
        raise fields.error("head_dim", f"must be even for rotary embeddings, is {head_dim}")
    num_layers = fields.size("num_hidden_layers")
    max_model_len = fields.size("max_position_embeddings")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_model_len=max_model_len,
        rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
        ropes=(_flat_rope(fields, max_model_len),) * num_layers,
        windows=(None,) * num_layers,
        attention_scale=head_dim**-0.5,
        eos_token_ids=fields.token_ids("eos_token_id"),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        activation=_activation(fields),
        qkv_bias=False,
        output_bias=False,
        ffn_bias=False,
    )


def _activation(fields: Fields) -> Activation:
    name = fields.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise fields.error(
            "hidden_act", f"{name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _flat_rope(fields: Fields, max_model_len: int) -> Rope:
    """One rope for all layers; what the section leaves out may stand beside it."""
    empty = Fields({}, fields.origin)
    section = fields.section("rope_scaling") or fields.section("rope_parameters") or empty
    keys = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    section = section.with_defaults(**{key: fields.get(key) for key in keys})
    return parse_rope(section, 10_000.0, max_model_len)


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
    return _windows(fields, window, sliding)


def _windows(fields: Fields, window: int | None, sliding: Sequence[bool]) -> tuple[int | None, ...]:
    """A window per layer from `layer_types`; where that is absent, `sliding` tells which layers."""
    kinds = fields.get("layer_types")
    if kinds is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
            raise fields.error("layer_types", f"expected a list of {' and '.join(known)}")
        if len(kinds) != len(sliding):
            raise fields.error("layer_types", f"{len(kinds)} entries for {len(sliding)} layers")
        sliding = [kind == "sliding_attention" for kind in kinds]
    if any(sliding) and window is None:
        raise fields.error("sliding_window", "is missing although layers slide")
    return tuple(window if slides else None for slides in sliding)
