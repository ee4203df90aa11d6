"""Configurations as they are found on the Hub, in the old spelling and the new."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.families import parse_config
from triptych.models.fields import Fields
from triptych.models.load import load_config
from triptych.models.rope import LinearScaling, Llama3Scaling, Rope
from triptych.testing.checkpoints import WINDOW, edit_config, tiny_checkpoint

SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 100000,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
LLAMA32 = SMOLLM2 | {
    "head_dim": 64,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "eos_token_id": [128001, 128008, 128009],
}
GEMMA3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}
QWEN25: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def parsed(values: dict[str, Any], **changes: Any) -> ModelConfig:
    return parse_config(Fields(values | changes, "config.json"))


def test_smollm2_is_a_plain_llama() -> None:
    config = parsed(SMOLLM2)
    assert (config.architecture, config.head_dim, config.eos_token_ids) == ("llama", 64, (2,))
    assert set(config.ropes) == {Rope(100000.0)} and set(config.windows) == {None}
    assert config.tie_word_embeddings and not config.qkv_bias


def test_llama_3_stretches_its_long_wavelengths() -> None:
    config = parsed(LLAMA32)
    assert config.ropes[0] == Rope(500000.0, Llama3Scaling(32.0, 1.0, 4.0, 8192))
    assert config.eos_token_ids == (128001, 128008, 128009)


def test_rope_is_the_same_in_old_and_new_spelling() -> None:
    new = LLAMA32["rope_scaling"] | {"rope_theta": 500000.0}
    assert parsed(LLAMA32, rope_scaling=None, rope_theta=None, rope_parameters=new) == parsed(
        LLAMA32
    )
    linear = Rope(500000.0, LinearScaling(2.0))
    assert parsed(LLAMA32, rope_scaling={"type": "linear", "factor": 2}).ropes[0] == linear


def test_gemma_3_is_filled_up_with_its_class_defaults() -> None:
    config = parsed(GEMMA3_4B)
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262208, 8, 4)
    assert config.windows[:7] == (1024,) * 5 + (None, 1024)
    assert config.ropes[0] == Rope(10_000.0)
    assert config.ropes[5] == Rope(1_000_000.0, LinearScaling(8.0))
    assert config.attention_scale == 1 / 16 and config.embed_scale == math.sqrt(2560)
    assert config.eos_token_ids == (1, 106) and config.tie_word_embeddings


def test_gemma_3_is_the_same_in_old_and_new_spelling(tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    tiny_checkpoint(tmp_path, "gemma3", rope_parameters=ropes)
    new = load_config(tmp_path)
    edit_config(
        tmp_path,
        rope_parameters=None,
        layer_types=None,
        rope_theta=2e6,
        rope_local_base_freq=2e4,
        rope_scaling={"type": "linear", "factor": 8.0},
        sliding_window_pattern=6,
    )
    assert load_config(tmp_path) == new
    assert new.windows == (WINDOW,) * 5 + (None, WINDOW)


def test_qwen_2_slides_only_when_told_to() -> None:
    assert set(parsed(QWEN25).windows) == {None}
    windows = parsed(QWEN25, use_sliding_window=True).windows
    assert windows == (None,) * 21 + (32768,) * 3
    kinds = ["sliding_attention"] + ["full_attention"] * 23
    windows = parsed(QWEN25, use_sliding_window=True, layer_types=kinds).windows
    assert windows == (32768,) + (None,) * 23


def test_generation_config_adds_end_tokens(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 2]}')
    assert load_config(tmp_path).eos_token_ids == (2, 7)


def test_an_unknown_architecture_is_named_with_the_supported_ones() -> None:
    with pytest.raises(ModelError, match="'FalconForCausalLM' is not supported.*Qwen3ForCausalLM"):
        parsed(SMOLLM2, architectures=["FalconForCausalLM"])


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "max_position_embeddings"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=f"config.json: key '{key}' is missing"):
        parsed(SMOLLM2, **{key: None})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"architectures": None}, "architectures: expected a list of one name, found None"),
        ({"hidden_size": "576"}, "hidden_size: expected an integer ≥ 1, found '576'"),
        ({"num_hidden_layers": True}, "num_hidden_layers: expected an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads: expected an integer ≥ 1"),
        ({"num_key_value_heads": 2}, "num_key_value_heads: 2 does not divide 9"),
        ({"head_dim": 63}, "head_dim: must be even"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' is not supported; supported: silu"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: expected a positive number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id: expected a token id"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised checkpoints"),
        ({"rope_scaling": "linear"}, "rope_scaling: expected a mapping"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: key 'factor' is missing"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "rope_type: 'dynamic' is not"),
        ({"partial_rotary_factor": 0.5}, "partial rotary embeddings are not supported"),
        (
            {"rope_scaling": LLAMA32["rope_scaling"] | {"high_freq_factor": 1}},
            "high_freq_factor: expected more than 1.0, found 1.0",
        ),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ModelError) as caught:
        parsed(SMOLLM2, **changes)
    assert "config.json" in str(caught.value) and complaint in str(caught.value)


@pytest.mark.parametrize(
    ("kinds", "complaint"),
    [
        (["full_attention"], "1 entries for 24 layers"),
        (["linear_attention"] * 24, "expected a list of full_attention and sliding_attention"),
    ],
)
def test_wrong_layer_types_are_named(kinds: list[str], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        parsed(QWEN25, use_sliding_window=True, layer_types=kinds)


def test_sliding_layers_need_a_window() -> None:
    kinds = ["sliding_attention"] * 24
    with pytest.raises(ModelError, match="sliding_window: is missing although layers slide"):
        parsed(QWEN25, use_sliding_window=True, sliding_window=None, layer_types=kinds)
