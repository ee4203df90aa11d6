"""Configurations of mixtures: what an absent key means, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.families import parse_config
from triptych.models.fields import Fields
from triptych.models.moe import MoeConfig, Routing
from triptych.models.rope import Rope

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
}
CLASSES = {
    "mixtral": "Mixtral",
    "qwen2_moe": "Qwen2Moe",
    "qwen3_moe": "Qwen3Moe",
    "olmoe": "Olmoe",
    "granitemoe": "GraniteMoe",
    "granitemoeshared": "GraniteMoeShared",
}


def parsed(family: str, **values: Any) -> ModelConfig:
    named = {"architectures": [f"{CLASSES[family]}ForCausalLM"]}
    return parse_config(Fields(named | SIZES | values, "config.json"))


def moe_of(family: str, **values: Any) -> MoeConfig:
    moe = parsed(family, **values).moe
    assert moe is not None
    return moe


@pytest.mark.parametrize("family", CLASSES)
def test_an_absent_key_means_what_it_means_in_transformers(family: str) -> None:
    import transformers

    theirs: Any = getattr(transformers, f"{CLASSES[family]}Config")(**SIZES)
    ours = parsed(family)
    moe = ours.moe
    assert moe is not None and ours.architecture == family == theirs.model_type
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.max_model_len == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.ropes[0] == Rope(theirs.rope_parameters["rope_theta"])
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    assert moe.routing.top_k == theirs.num_experts_per_tok
    experts = getattr(theirs, "num_local_experts", None) or theirs.num_experts
    assert moe.routing.num_experts == experts
    assert moe.expert_size == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
    shared = ("shared_expert_intermediate_size", "shared_intermediate_size")
    assert moe.shared_size == next((getattr(theirs, k) for k in shared if hasattr(theirs, k)), 0)
    assert ours.qkv_bias == getattr(theirs, "qkv_bias", False)
    assert set(ours.windows) == {None}
    if family != "mixtral":
        assert moe.routing.renormalise == getattr(theirs, "norm_topk_prob", False)


def test_mixtral_always_renormalises() -> None:
    assert moe_of("mixtral").routing == Routing(8, 2, "softmax", renormalise=True)


def test_granite_scales_what_others_do_not_and_routes_by_the_chosen_alone() -> None:
    values = {
        "embedding_multiplier": 12,
        "attention_multiplier": 0.015625,
        "residual_multiplier": 0.22,
        "logits_scaling": 6.0,
        "shared_intermediate_size": 48,
    }
    config = parsed("granitemoeshared", **values)
    assert (config.embed_scale, config.attention_scale) == (12.0, 0.015625)
    assert (config.branch_scale, config.logits_divisor) == (0.22, 6.0)
    assert config.moe is not None and config.moe.shared_size == 48 and not config.moe.shared_gate
    assert config.moe.routing.scoring == "softmax_of_chosen"
    assert moe_of("granitemoe", shared_intermediate_size=48).shared_size == 0


def test_olmoe_norms_queries_and_keys_over_all_heads() -> None:
    config = parsed("olmoe")
    assert config.qk_norm and config.qk_norm_whole
    assert not parsed("qwen3_moe").qk_norm_whole


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_layers_may_be_dense_by_name_or_by_period(family: str) -> None:
    assert moe_of(family).layers == (True,) * 4
    assert moe_of(family, mlp_only_layers=[0, 3]).layers == (False, True, True, False)
    assert moe_of(family, decoder_sparse_step=2).layers == (False, True, False, True)
    both = moe_of(family, decoder_sparse_step=2, mlp_only_layers=[1])
    assert both.layers == (False, False, False, True)


def test_every_other_layer_of_qwen_2_slides_when_told_to() -> None:
    windows = parsed("qwen2_moe", use_sliding_window=True, max_window_layers=3).windows
    assert windows == (4096, None, 4096, None)
    assert set(parsed("qwen2_moe", sliding_window=0).windows) == {None}
    kinds = ["full_attention", "sliding_attention"] * 2
    windows = parsed(
        "qwen2_moe", use_sliding_window=True, sliding_window=9, layer_types=kinds
    ).windows
    assert windows == (None, 9, None, 9)


def test_all_layers_of_qwen_3_slide_when_told_to() -> None:
    assert parsed("qwen3_moe", use_sliding_window=True).windows == (4096,) * 4


@pytest.mark.parametrize(
    ("family", "values", "complaint"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok: 9 of 8 experts"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts: expected an integer ≥ 1"),
        ("olmoe", {"num_experts": "64"}, "num_experts: expected an integer ≥ 1, found '64'"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv: clipped queries, keys and values are not"),
        ("olmoe", {"norm_topk_prob": 1}, "norm_topk_prob: expected true or false, found 1"),
        ("qwen2_moe", {"mlp_only_layers": [4]}, "mlp_only_layers: expected a list of layers < 4"),
        ("qwen3_moe", {"mlp_only_layers": "1"}, "mlp_only_layers: expected a list of layers < 4"),
        ("qwen3_moe", {"mlp_only_layers": [True]}, "mlp_only_layers: expected a list of layers"),
        ("qwen2_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: expected an integer ≥ 1"),
        ("qwen2_moe", {"moe_intermediate_size": -1}, "moe_intermediate_size: expected an integer"),
        ("granitemoe", {"logits_scaling": 0}, "logits_scaling: expected a positive number"),
        ("granitemoe", {"residual_multiplier": "1"}, "residual_multiplier: expected a number"),
        (
            "granitemoeshared",
            {"shared_intermediate_size": -1},
            "shared_intermediate_size: expected an integer ≥ 0",
        ),
        ("mixtral", {"hidden_size": None}, "key 'hidden_size' is missing"),
    ],
)
def test_a_wrong_value_is_named(family: str, values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError) as caught:
        parsed(family, **values)
    assert "config.json" in str(caught.value) and complaint in str(caught.value)
