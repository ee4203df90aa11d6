"""DeepSeek-V2, V3 and V3.2: attention out of low ranks, and mixtures behind the first, dense
layers.

A key that is absent means what it means in transformers, but for `q_lora_rank`, whose absence means
what null means there: queries have a projection of their own.
"""

from __future__ import annotations

from dataclasses import replace

from triptych.models.config import IndexConfig, LatentConfig, ModelConfig
from triptych.models.family_parts import common_config, plain_routing, rope_section
from triptych.models.fields import Fields
from triptych.models.moe import MoeConfig, Routing
from triptych.models.rope import yarn_mscale


def parse_deepseek_v2(fields: Fields) -> ModelConfig:
    """V2 and V2-Lite. `norm_topk_prob` does nothing here, as in transformers; vLLM divides the
    weights by their sum where it is set, which no released model does.
    """
    fields = fields.with_defaults(n_routed_experts=64, n_shared_experts=2)
    _expect(fields, "scoring_func", "softmax")
    routing = plain_routing(fields, "n_routed_experts")
    routing = replace(routing, scale=fields.positive("routed_scaling_factor", 1.0))
    method = fields.text("topk_method", "greedy")
    if method == "group_limited_greedy":
        routing = _grouped(fields, routing)
    elif method != "greedy":
        raise fields.error("topk_method", f"{method!r} is not supported in DeepSeek-V2")
    config = _latent_model(fields, "deepseek_v2", interleaved=True)
    return replace(
        config,
        ffn_bias=fields.flag("mlp_bias", False),
        moe=_mixture(fields, routing, config.num_layers, first_mixture=0, expert_size=1407),
    )


def parse_deepseek_v3(fields: Fields) -> ModelConfig:
    """V3, V3.1, R1, and what has their shape. Layers that predict further tokens are skipped."""
    fields = fields.with_defaults(
        n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, n_group=8, topk_group=4
    )
    _expect(fields, "scoring_func", "sigmoid")
    _expect(fields, "topk_method", "noaux_tc")
    renormalise = fields.flag("norm_topk_prob", True)
    routing = plain_routing(fields, "n_routed_experts", "sigmoid", renormalise=renormalise)
    scale = fields.positive("routed_scaling_factor", 2.5)
    routing = _grouped(fields, replace(routing, scale=scale, group_score="two_best"))
    config = _latent_model(fields, "deepseek_v3", fields.flag("rope_interleave", True))
    moe = _mixture(fields, routing, config.num_layers, first_mixture=3, expert_size=2048)
    return replace(
        config,
        moe=replace(moe, correction_bias=True),
        draft_layers=fields.size("num_nextn_predict_layers", 0, minimum=0),
    )


def parse_deepseek_v32(fields: Fields) -> ModelConfig:
    """A V3 whose rows attend to the tokens that an indexer chooses; it needs a rank of queries."""
    config = parse_deepseek_v3(fields.with_defaults(q_lora_rank=1536))
    index = IndexConfig(
        fields.size("index_n_heads", 64),
        _even(fields, "index_head_dim", 128),
        fields.size("index_topk", 2048),
    )
    if index.head_dim < config.rope_dim:
        problem = f"{index.head_dim} numbers, fewer than qk_rope_head_dim ({config.rope_dim})"
        raise fields.error("index_head_dim", problem)
    moe = config.moe
    if moe is not None:
        moe = replace(moe, layers=_sparse_layers(fields, moe.layers))
    return replace(config, architecture="deepseek_v32", index=index, moe=moe)


def _latent_model(fields: Fields, architecture: str, interleaved: bool) -> ModelConfig:
    """All but the mixture. `interleaved`: how rotary pairs are stored."""
    latent = LatentConfig(
        query_rank=fields.optional_size("q_lora_rank"),
        kv_rank=fields.size("kv_lora_rank", 512),
        rope_dim=_even(fields, "qk_rope_head_dim", 64),
        plain_dim=_even(fields, "qk_nope_head_dim", 128),
        value_dim=_even(fields, "v_head_dim", 128),
        interleaved=interleaved,
    )
    if latent.value_dim > latent.head_dim:
        problem = f"values wider than keys ({latent.value_dim} > {latent.head_dim})"
        raise fields.error("v_head_dim", f"{problem} are not supported")
    # head_dim in the file, if any, is that of the rotary part.
    heads = fields.size("num_attention_heads")
    config = common_config(
        fields.replaced(head_dim=latent.head_dim, num_key_value_heads=heads), architecture
    )
    bias = fields.flag("attention_bias", False)
    return replace(
        config,
        latent=latent,
        attention_scale=config.attention_scale * _score_scale(fields),
        qkv_bias=bias,
        output_bias=bias,
    )


def _score_scale(fields: Fields) -> float:
    """A stretched context sharpens all scores, beside what `Rope.attention_scaling` does to rotary
    ones.
    """
    section = rope_section(fields)
    strength = section.number("mscale_all_dim", 0.0)
    if section.text("rope_type", section.text("type", "default")) == "default" or not strength:
        return 1.0
    return yarn_mscale(section.positive("factor"), strength) ** 2


def _mixture(
    fields: Fields, routing: Routing, num_layers: int, *, first_mixture: int, expert_size: int
) -> MoeConfig:
    """Two defaults are the family's."""
    first = fields.size("first_k_dense_replace", first_mixture, minimum=0)
    period = fields.size("moe_layer_freq", 1)
    expert_size = fields.size("moe_intermediate_size", expert_size)
    return MoeConfig(
        routing,
        expert_size,
        tuple(layer >= first and layer % period == 0 for layer in range(num_layers)),
        shared_size=fields.size("n_shared_experts", 0, minimum=0) * expert_size,
    )


def _sparse_layers(fields: Fields, layers: tuple[bool, ...]) -> tuple[bool, ...]:
    """Which layers are mixtures where `mlp_layer_types` says it, else `layers`."""
    kinds = fields.get("mlp_layer_types")
    if kinds is None:
        return layers
    if not isinstance(kinds, list) or any(kind not in ("dense", "sparse") for kind in kinds):
        raise fields.error("mlp_layer_types", "expected a list of dense and sparse")
    if len(kinds) != len(layers):
        raise fields.error("mlp_layer_types", f"{len(kinds)} entries for {len(layers)} layers")
    return tuple(kind == "sparse" for kind in kinds)


def _grouped(fields: Fields, routing: Routing) -> Routing:
    groups, kept = fields.size("n_group", 1), fields.size("topk_group", 1)
    size = routing.num_experts // groups
    if groups * size != routing.num_experts:
        raise fields.error("n_group", f"{groups} groups of {routing.num_experts} experts")
    if kept > groups:
        raise fields.error("topk_group", f"{kept} of {groups} groups")
    if kept * size < routing.top_k:
        raise fields.error("topk_group", f"{kept} groups of {size} for {routing.top_k} experts")
    if routing.group_score == "two_best" and size < 2:
        raise fields.error("n_group", "groups of one expert have no two best ones")
    return replace(routing, groups=groups, groups_kept=kept)


def _expect(fields: Fields, key: str, value: str) -> None:
    found = fields.text(key, value)
    if found != value:
        raise fields.error(key, f"{found!r} is not supported in this family; supported: {value}")


def _even(fields: Fields, key: str, default: int) -> int:
    size = fields.size(key, default)
    if size % 2:
        raise fields.error(key, f"must be even, is {size}")
    return size
