"""Qwen3-Next computes what transformers computes from the same directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.models.test_against_transformers import (
    PROMPT,
    expected_logits,
    expected_tokens,
    logits_of,
    transformers_model,
)
from triptych.errors import ModelError
from triptych.models.load import load_config, load_model
from triptych.testing.checkpoints import edit_config, tiny_checkpoint
from triptych.testing.dense_kv import greedy_tokens

ROPE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_experts": 0},
        {"linear_num_value_heads": 2, "linear_conv_kernel_dim": 3},
        {"rope_parameters": ROPE, "norm_topk_prob": False, "mlp_only_layers": []},
        {"layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2},
    ],
    ids=str,
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, "qwen3_next", **options)
    theirs, ours = transformers_model(tmp_path), load_model(tmp_path, dtype="float32")
    expected = expected_logits(theirs, PROMPT)
    assert expected.std() > 0.1, "the checkpoint must say something"
    torch.testing.assert_close(logits_of(ours, PROMPT), expected, rtol=2e-4, atol=2e-4)
    assert greedy_tokens(ours, PROMPT, 20) == expected_tokens(theirs, PROMPT, 20)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("linear_num_key_heads", 3, "3 does not divide 4 value heads"),
        ("layer_types", ["linear_attention"], "1 entries for 4 layers"),
        ("layer_types", ["mamba"] * 4, "expected a list of linear_attention and full_attention"),
        ("attention_bias", True, "biases of this family are not supported"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_key(
    key: str, value: Any, problem: str, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, "qwen3_next")
    edit_config(tmp_path, **{key: value})
    with pytest.raises(ModelError, match=f"{key}: {problem}"):
        load_config(tmp_path)
