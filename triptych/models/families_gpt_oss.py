"""gpt-oss: sinks, windows in every other layer, and experts with biases behind a clamped gate."""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import ModelConfig
from triptych.models.family_parts import common_config, layer_windows, plain_routing
from triptych.models.fields import Fields
from triptych.models.moe import MoeConfig
from triptych_kernels.reference import SWIGLU_ALPHA, SWIGLU_LIMIT

_GATE = {"swiglu_limit": SWIGLU_LIMIT, "swiglu_alpha": SWIGLU_ALPHA}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def parse_gpt_oss(fields: Fields) -> ModelConfig:
    """20b and 120b. A key that is absent means what it means in transformers."""
    for key, value in _GATE.items():
        if fields.number(key, value) != value:
            raise fields.error(key, f"{fields.get(key)} is not supported; supported: {value}")
    fields = fields.with_defaults(
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131_072,
        sliding_window=128,
        rms_norm_eps=1e-5,
        rope_theta=150_000.0,
        num_local_experts=128,
        num_experts_per_tok=4,
    )
    if fields.get("rope_scaling") is None:
        fields = fields.with_defaults(rope_parameters=_ROPE)
    config = common_config(fields, "gpt_oss")
    bias = fields.flag("attention_bias", True)
    every_other = [layer % 2 == 0 for layer in range(config.num_layers)]
    return replace(
        config,
        qkv_bias=bias,
        output_bias=bias,
        windows=layer_windows(fields, fields.size("sliding_window"), every_other),
        sinks=True,
        activation="clamped_swiglu",
        moe=MoeConfig(
            plain_routing(fields, "num_local_experts", "softmax_of_chosen"),
            config.intermediate_size,
            (True,) * config.num_layers,
            router_bias=True,
            expert_bias=True,
        ),
    )
