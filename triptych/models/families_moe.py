"""The families with mixtures of experts. A key that is absent means what it means in transformers;
of the sizes only those of the experts have defaults.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import ModelConfig
from triptych.models.family_parts import common_config, layer_windows, plain_routing
from triptych.models.fields import Fields
from triptych.models.moe import MoeConfig


def parse_mixtral(fields: Fields) -> ModelConfig:
    fields = fields.with_defaults(
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        eos_token_id=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    config = common_config(fields, "mixtral")
    window = fields.optional_size("sliding_window")
    routing = plain_routing(fields, "num_local_experts", renormalise=True)
    moe = MoeConfig(routing, config.intermediate_size, (True,) * config.num_layers)
    return replace(config, windows=(window,) * config.num_layers, moe=moe)


def parse_qwen2_moe(fields: Fields) -> ModelConfig:
    """Besides the chosen experts every row goes to a shared one, behind a gate of its own."""
    fields = fields.with_defaults(
        num_key_value_heads=16,
        max_position_embeddings=32_768,
        sliding_window=4096,
        num_experts=60,
        num_experts_per_tok=4,
        moe_intermediate_size=1408,
    )
    config = common_config(fields, "qwen2_moe")
    sliding = fields.flag("use_sliding_window", False)
    near = fields.size("max_window_layers", 28, minimum=0) if sliding else 0
    window = fields.size("sliding_window") if sliding else None
    every_other = [layer % 2 == 0 and layer < near for layer in range(config.num_layers)]
    moe = replace(
        qwen_moe(fields, "num_experts", config.num_layers),
        shared_size=fields.size("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    return replace(
        config,
        qkv_bias=fields.flag("qkv_bias", True),
        windows=layer_windows(fields, window, every_other) if sliding else config.windows,
        moe=moe,
    )


def parse_qwen3_moe(fields: Fields) -> ModelConfig:
    experts = "num_experts" if fields.get("num_local_experts") is None else "num_local_experts"
    fields = fields.with_defaults(
        num_key_value_heads=4,
        max_position_embeddings=32_768,
        sliding_window=4096,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    )
    config = common_config(fields, "qwen3_moe")
    bias = fields.flag("attention_bias", False)
    sliding = fields.flag("use_sliding_window", False)
    window = fields.size("sliding_window") if sliding else None
    return replace(
        config,
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        windows=(window,) * config.num_layers,
        moe=qwen_moe(fields, experts, config.num_layers),
    )


def parse_olmoe(fields: Fields) -> ModelConfig:
    """Queries and keys are normed over all of their heads at once."""
    fields = fields.with_defaults(
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        eos_token_id=50_279,
        num_experts=64,
        num_experts_per_tok=8,
    )
    if fields.get("clip_qkv") is not None:
        raise fields.error("clip_qkv", "clipped queries, keys and values are not supported")
    config = common_config(fields, "olmoe")
    bias = fields.flag("attention_bias", False)
    routing = plain_routing(fields, "num_experts", renormalise=fields.flag("norm_topk_prob", False))
    return replace(
        config,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        qk_norm_whole=True,
        moe=MoeConfig(routing, config.intermediate_size, (True,) * config.num_layers),
    )


def parse_granitemoe(fields: Fields) -> ModelConfig:
    return _granite(fields, "granitemoe", shared_size=0)


def parse_granitemoeshared(fields: Fields) -> ModelConfig:
    shared_size = fields.size("shared_intermediate_size", 0, minimum=0)
    return _granite(fields, "granitemoeshared", shared_size)


def _granite(fields: Fields, architecture: str, shared_size: int) -> ModelConfig:
    fields = fields.with_defaults(
        max_position_embeddings=2048,
        eos_token_id=2,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    config = common_config(fields, architecture)
    bias = fields.flag("attention_bias", False)
    moe = MoeConfig(
        plain_routing(fields, "num_local_experts", "softmax_of_chosen"),
        expert_size=config.intermediate_size,
        layers=(True,) * config.num_layers,
        shared_size=shared_size,
    )
    return replace(
        config,
        qkv_bias=bias,
        output_bias=bias,
        embed_scale=fields.positive("embedding_multiplier", 1.0),
        attention_scale=fields.positive("attention_multiplier", 1.0),
        branch_scale=fields.positive("residual_multiplier", 1.0),
        logits_divisor=fields.positive("logits_scaling", 1.0),
        moe=moe,
    )


def qwen_moe(fields: Fields, experts: str, num_layers: int) -> MoeConfig:
    """`experts`: the key of their number."""
    period = fields.size("decoder_sparse_step", 1)
    dense = _dense_layers(fields, num_layers)
    return MoeConfig(
        plain_routing(fields, experts, renormalise=fields.flag("norm_topk_prob", False)),
        expert_size=fields.size("moe_intermediate_size"),
        layers=tuple(
            layer not in dense and (layer + 1) % period == 0 for layer in range(num_layers)
        ),
    )


def _dense_layers(fields: Fields, num_layers: int) -> frozenset[int]:
    layers = fields.get("mlp_only_layers")
    known = range(num_layers)
    if layers is None:
        return frozenset()
    if not isinstance(layers, list) or any(type(x) is not int or x not in known for x in layers):
        raise fields.error(
            "mlp_only_layers", f"expected a list of layers < {num_layers}, found {layers!r}"
        )
    return frozenset(layers)
