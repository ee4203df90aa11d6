"""Qwen3-Next: gated delta layers, and a layer of gated attention behind every few of them.

Keys, defaults and tensor names are those of transformers' `qwen3_next`.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import DeltaConfig, ModelConfig
from triptych.models.families_moe import qwen_moe
from triptych.models.family_parts import common_config, rope_section
from triptych.models.fields import Fields

_KINDS = ("linear_attention", "full_attention")


def parse_qwen3_next(fields: Fields) -> ModelConfig:
    """Raises ModelError."""
    fields = fields.with_defaults(
        num_key_value_heads=2,
        head_dim=256,
        max_position_embeddings=32_768,
        num_experts=512,
        num_experts_per_tok=10,
        moe_intermediate_size=512,
        norm_topk_prob=True,
    )
    rotated = rope_section(fields).positive("partial_rotary_factor", 0.25)
    config = common_config(_rotated_whole(fields), "qwen3_next")
    rotary_dim = int(config.head_dim * rotated)
    if rotary_dim % 2 or not 2 <= rotary_dim <= config.head_dim:
        raise fields.error(
            "partial_rotary_factor",
            f"{rotated} of heads of {config.head_dim} is not an even count of numbers",
        )
    if fields.flag("attention_bias", False):
        raise fields.error("attention_bias", "biases of this family are not supported")
    moe = None
    if fields.size("num_experts", minimum=0):
        moe = replace(
            qwen_moe(fields, "num_experts", config.num_layers),
            shared_size=fields.size("shared_expert_intermediate_size", 512),
            shared_gate=True,
        )
    return replace(
        config,
        qk_norm=True,
        norm_offset=1.0,
        output_gate=True,
        rotary_dim=rotary_dim,
        moe=moe,
        delta=_delta(fields, config.num_layers),
    )


def _rotated_whole(fields: Fields) -> Fields:
    """Without the part of a head that is rotated, which is told apart from the rope."""
    sections = {
        key: {**fields.get(key), "partial_rotary_factor": None}
        for key in ("rope_scaling", "rope_parameters")
        if fields.section(key) is not None
    }
    return fields.replaced(partial_rotary_factor=None, **sections)


def _delta(fields: Fields, num_layers: int) -> DeltaConfig:
    key_heads = fields.size("linear_num_key_heads", 16)
    value_heads = fields.size("linear_num_value_heads", 32)
    if value_heads % key_heads:
        raise fields.error(
            "linear_num_key_heads", f"{key_heads} does not divide {value_heads} value heads"
        )
    return DeltaConfig(
        layers=_linear_layers(fields, num_layers),
        key_heads=key_heads,
        value_heads=value_heads,
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        conv_tokens=fields.size("linear_conv_kernel_dim", 4, minimum=2),
    )


def _linear_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    kinds = fields.get("layer_types")
    if kinds is None:
        every = fields.size("full_attention_interval", 4)
        return tuple((layer + 1) % every != 0 for layer in range(num_layers))
    if not isinstance(kinds, list) or any(kind not in _KINDS for kind in kinds):
        raise fields.error("layer_types", f"expected a list of {' and '.join(_KINDS)}")
    if len(kinds) != num_layers:
        raise fields.error("layer_types", f"{len(kinds)} entries for {num_layers} layers")
    return tuple(kind == _KINDS[0] for kind in kinds)
