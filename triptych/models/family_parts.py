"""What the configurations of all families have in common, in the old spelling and in the new."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.models.config import Activation, ModelConfig
from triptych.models.fields import Fields
from triptych.models.moe import Routing, Scoring
from triptych.models.rope import parse_rope

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def common_config(fields: Fields, architecture: str) -> ModelConfig:
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
        ropes=(parse_rope(rope_section(fields), 10_000.0, max_model_len),) * num_layers,
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


def rope_section(fields: Fields) -> Fields:
    """Of a family with one rope for all layers; what it leaves out may stand beside it."""
    empty = Fields({}, fields.origin)
    section = fields.section("rope_scaling") or fields.section("rope_parameters") or empty
    keys = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
    return section.with_defaults(**{key: fields.get(key) for key in keys})


def layer_windows(
    fields: Fields, window: int | None, sliding: Sequence[bool]
) -> tuple[int | None, ...]:
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


def plain_routing(
    fields: Fields, experts: str, scoring: Scoring = "softmax", *, renormalise: bool = False
) -> Routing:
    """To the `num_experts_per_tok` best of all experts; `experts`: the key of their number."""
    num_experts, top_k = fields.size(experts), fields.size("num_experts_per_tok")
    if top_k > num_experts:
        raise fields.error("num_experts_per_tok", f"{top_k} of {num_experts} experts")
    return Routing(num_experts, top_k, scoring, renormalise)
