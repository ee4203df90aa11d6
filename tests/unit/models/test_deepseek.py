"""DeepSeek-V2, V3 and V3.2: heads out of low ranks, chosen groups of experts, weights of FP8."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.config import IndexConfig, LatentConfig, ModelConfig
from triptych.models.families import parse_config
from triptych.models.fields import Fields
from triptych.models.latent_weights import down_rows, kv_rows, query_rows
from triptych.models.load import load_config, load_model
from triptych.models.moe import Routing
from triptych.models.packed_tensors import FP8_BLOCK, from_fp8
from triptych.models.storage import WeightDtype
from triptych.testing.checkpoints import VOCAB_SIZE, edit_config, tiny_checkpoint
from triptych.testing.dense_kv import DenseSequence, greedy_tokens

PROMPT = torch.randint(3, VOCAB_SIZE, (37,), generator=torch.Generator().manual_seed(1)).tolist()
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v2", {"rope_parameters": YARN}),
    ("deepseek_v2", {"q_lora_rank": None, "topk_method": "greedy", "n_group": None}),
    ("deepseek_v2", {"attention_bias": True, "mlp_bias": True, "first_k_dense_replace": 0}),
    ("deepseek_v2", {"v_head_dim": 32, "n_shared_experts": 1, "tie_word_embeddings": True}),
    ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}}),
    ("deepseek_v3", {"rope_interleave": False, "n_group": 1, "topk_group": 1}),
    ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True, "norm_topk_prob": False}),
    ("deepseek_v3", {"routed_scaling_factor": 1.0, "n_group": 6, "topk_group": 2}),
    ("deepseek_v32", {"rope_parameters": YARN}),
    ("deepseek_v32", {"index_topk": 5, "index_head_dim": 12, "attention_bias": True}),
    ("deepseek_v32", {"index_topk": 1, "mlp_layer_types": ["sparse", "dense", "sparse"]}),
]

V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "eos_token_id": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V32: dict[str, Any] = V3 | {
    "architectures": ["DeepseekV32ForCausalLM"],
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 2048,
}
LITE: dict[str, Any] = V3 | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "norm_topk_prob": False,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "hidden_size": 2048,
    "moe_intermediate_size": 1408,
    "q_lora_rank": None,
    "quantization_config": None,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_method": "greedy",
}


def parsed(values: dict[str, Any], **changes: Any) -> ModelConfig:
    return parse_config(Fields(values | changes, "config.json"))


def theirs(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped
    return auto.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


def expected_logits(path: Path, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = theirs(path)(torch.tensor([token_ids])).logits[0]
    return logits.clone()


def logits_of(path: Path, dtype: WeightDtype = "float32") -> Tensor:
    return DenseSequence(load_model(path, dtype=dtype)).extend(PROMPT)


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, family, **options)
    expected = expected_logits(tmp_path, PROMPT)
    torch.testing.assert_close(logits_of(tmp_path), expected, rtol=2e-5, atol=2e-5)
    tokens = greedy_tokens(load_model(tmp_path, dtype="float32"), PROMPT, 20)
    likeliest = expected_logits(tmp_path, [*PROMPT, *tokens]).argmax(-1)
    assert tokens == likeliest[len(PROMPT) - 1 : -1].tolist()


def test_v3_is_read_as_it_is_published() -> None:
    config = parsed(V3)
    assert config.latent == LatentConfig(1536, 512, 64, 128, 128, interleaved=True)
    assert (config.head_dim, config.num_kv_heads, config.rope_dim) == (192, 128, 64)
    assert config.draft_layers == 1 and config.value_dim == 128
    sharper = 0.1 * math.log(40) + 1
    assert config.attention_scale == pytest.approx(192**-0.5 * sharper**2)
    assert config.ropes[0].attention_scaling == 1.0
    assert config.moe is not None
    assert config.moe.routing == Routing(
        256, 8, "sigmoid", True, scale=2.5, groups=8, groups_kept=4, group_score="two_best"
    )
    assert config.moe.layers == (False,) * 3 + (True,) * 58
    assert config.moe.correction_bias and config.moe.shared_size == 2048


def test_v32_is_v3_with_an_indexer() -> None:
    config, plain = parsed(V32), parsed(V3)
    assert config.index == IndexConfig(num_heads=64, head_dim=128, top_k=2048)
    assert replace(config, index=None, architecture="deepseek_v3") == plain
    layers = ["sparse", "dense"] * 30 + ["sparse"]
    moe = parsed(V32, mlp_layer_types=layers).moe
    assert moe is not None and moe.layers == (True, False) * 30 + (True,)


def test_v2_lite_has_no_rank_of_queries_and_no_groups() -> None:
    config = parsed(LITE)
    assert config.latent is not None and config.latent.query_rank is None
    assert config.moe is not None and config.moe.routing == Routing(64, 6)
    assert config.moe.shared_size == 2 * 1408 and not config.moe.correction_bias
    assert parsed(LITE, moe_layer_freq=2).moe != config.moe


@pytest.mark.parametrize(
    ("values", "changes", "complaint"),
    [
        (V3, {"scoring_func": "softmax"}, "scoring_func: 'softmax' is not supported"),
        (V3, {"topk_method": "greedy"}, "topk_method: 'greedy' is not supported"),
        (LITE, {"topk_method": "noaux_tc"}, "topk_method: 'noaux_tc' is not supported"),
        (V3, {"n_group": 3}, "n_group: 3 groups of 256 experts"),
        (V3, {"topk_group": 9}, "topk_group: 9 of 8 groups"),
        (V3, {"n_group": 256}, "topk_group: 4 groups of 1 for 8 experts"),
        (V3, {"v_head_dim": 256}, "v_head_dim: values wider than keys"),
        (V32, {"index_head_dim": 32}, "index_head_dim: 32 numbers, fewer than qk_rope_head_dim"),
        (V32, {"index_head_dim": 129}, "index_head_dim: must be even"),
        (V32, {"index_topk": 0}, "index_topk: expected an integer ≥ 1"),
        (V32, {"mlp_layer_types": ["dense"]}, "mlp_layer_types: 1 entries for 61 layers"),
        (V32, {"mlp_layer_types": ["linear"]}, "mlp_layer_types: expected a list of dense and"),
        (V3, {"qk_rope_head_dim": 63}, "qk_rope_head_dim: must be even"),
        (
            V3,
            {"quantization_config": {"quant_method": "fp8"}},
            "FP8 in blocks of .* is 'fp8' otherwise",
        ),
        (
            V3,
            {"quantization_config": {"quant_method": "awq"}},
            "FP8 in blocks of .* is 'awq' otherwise",
        ),
    ],
)
def test_what_is_not_supported_is_named(
    values: dict[str, Any], changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint):
        parsed(values, **changes)


def test_every_stored_row_has_one_place_in_our_heads() -> None:
    latent = LatentConfig(5, 7, rope_dim=4, plain_dim=3, value_dim=2, interleaved=True)
    assert query_rows(latent, 2).tolist() == [3, 5, 4, 6, 0, 1, 2, 10, 12, 11, 13, 7, 8, 9]
    assert down_rows(latent).tolist() == [*range(12), 12, 14, 13, 15]
    none = [-1] * 4
    keys = [*none, 0, 1, 2, *none, 5, 6, 7]
    values = [3, 4, -1, -1, -1, -1, -1, 8, 9, -1, -1, -1, -1, -1]
    assert kv_rows(latent, 2).tolist() == keys + values


def test_layers_that_predict_further_tokens_are_skipped_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tiny_checkpoint(tmp_path, "deepseek_v3") / "model.safetensors"
    wanted = logits_of(tmp_path)
    weights = load_file(file)
    last = {n: w for n, w in weights.items() if n.startswith("model.layers.2.")}
    more = {n.replace("layers.2.", "layers.3."): w.clone() for n, w in last.items()}
    more |= {"model.layers.3.eh_proj.weight": torch.zeros(64, 128)}
    save_file(weights | more, file, metadata={"format": "pt"})
    edit_config(tmp_path, num_nextn_predict_layers=1)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits_of(tmp_path), wanted)
    assert not caplog.records
    edit_config(tmp_path, num_nextn_predict_layers=0)
    logits_of(tmp_path)
    assert "unused tensors" in caplog.text


def store_as_fp8(directory: Path) -> None:
    """As DeepSeek-V3 is published: all projections, but not router, norms and vocabulary."""
    file = directory / "model.safetensors"
    stored: dict[str, Tensor] = {}
    for name, weight in load_file(file).items():
        if not name.endswith("proj.weight") and "kv_a_proj_with_mqa" not in name:
            stored[name] = weight
            continue
        rows, columns = (-(-size // FP8_BLOCK) for size in weight.shape)
        scale = torch.rand(rows, columns) * 1e-3 + 1e-3
        spread = scale.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
        spread = spread[: weight.shape[0], : weight.shape[1]]
        stored[name] = (weight / spread).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    save_file(stored, file, metadata={"format": "pt"})
    edit_config(directory, quantization_config=V3["quantization_config"])


def test_weights_of_fp8_are_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    sizes = {"hidden_size": 192, "kv_lora_rank": 136, "moe_intermediate_size": 136}
    packed = tiny_checkpoint(tmp_path / "packed", "deepseek_v3", **sizes)
    plain = tiny_checkpoint(tmp_path / "plain", "deepseek_v3", **sizes)
    store_as_fp8(packed)
    weights = load_file(packed / "model.safetensors")
    unpacked = {
        name: from_fp8(w, weights[f"{name}_scale_inv"]) if f"{name}_scale_inv" in weights else w
        for name, w in weights.items()
        if not name.endswith("_scale_inv")
    }
    save_file(unpacked, plain / "model.safetensors", metadata={"format": "pt"})
    assert load_config(packed) == load_config(plain)
    assert torch.equal(logits_of(packed), logits_of(plain))
    expected = expected_logits(plain, PROMPT)
    torch.testing.assert_close(logits_of(packed), expected, rtol=1e-4, atol=1e-4)


def test_a_scale_belongs_to_128_rows_and_128_columns() -> None:
    weight = torch.ones(130, 300).to(torch.float8_e4m3fn)
    scale = torch.arange(6.0).view(2, 3) + 1
    wide = from_fp8(weight, scale)
    assert wide.dtype == torch.float32
    for row, column in ((0, 0), (127, 127), (128, 128), (129, 299), (5, 256)):
        assert wide[row, column] == scale[row // 128, column // 128]


def test_fp8_with_other_scales_is_refused(tmp_path: Path) -> None:
    store_as_fp8(tiny_checkpoint(tmp_path, "deepseek_v3"))
    file = tmp_path / "model.safetensors"
    name = "model.layers.0.self_attn.o_proj.weight"
    weights = load_file(file) | {f"{name}_scale_inv": torch.ones(3, 1)}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"'{name}' is no float8_e4m3fn with a scale for each"):
        load_model(tmp_path, dtype="float32")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_heads_keep_their_zeros_on_every_grid(dtype: WeightDtype, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(tmp_path, "deepseek_v3"), dtype=dtype)
    heads: Any = model.layers[0].attention.qkv
    rows = heads.kv_up.row(torch.arange(heads.kv_up.out_features))
    empty = kv_rows(load_config(tmp_path).latent, 4) < 0  # type: ignore[arg-type]
    assert not rows[empty].any() and rows[~empty].any(dim=1).all()


def test_gguf_of_it_is_refused_by_name(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    for arch in ("deepseek2", "gpt-oss"):
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", arch)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelError, match=f"architecture '{arch}' is not supported"):
            load_config(tmp_path / "model.gguf")
