"""Every family computes what transformers computes from the same directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.models.load import load_config, load_model
from triptych.models.model import Model
from triptych.testing.checkpoints import (
    FAMILIES,
    VOCAB_SIZE,
    WINDOW,
    fill_randomly,
    tiny_checkpoint,
)
from triptych.testing.dense_kv import DenseSequence, greedy_tokens

PROMPT = torch.randint(
    3, VOCAB_SIZE, (4 * WINDOW + 5,), generator=torch.Generator().manual_seed(1)
).tolist()
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": LINEAR}),
    ("llama", {"rope_parameters": YARN}),
    (
        "llama",
        {"rope_parameters": YARN | {"truncate": False, "mscale": 1.2, "mscale_all_dim": 0.7}},
    ),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("llama", {"max_shard_size": "40KB"}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}),
    ("qwen2", {"max_window_layers": 0}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 1}),
    ("gemma3", {"rope_parameters": GEMMA_ROPES, "max_shard_size": "40KB"}),
    ("gemma3", {"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}),
]


def transformers_model(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # untyped
    return auto.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", **options
    ).eval()


def expected_logits(model: Any, token_ids: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.clone()


def expected_tokens(model: Any, prompt_ids: list[int], count: int) -> list[int]:
    ids = list(prompt_ids)
    for _ in range(count):
        ids.append(int(expected_logits(model, ids)[-1].argmax()))
    return ids[len(prompt_ids) :]


def logits_of(model: Model, token_ids: list[int]) -> Tensor:
    return DenseSequence(model).extend(token_ids)


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, family, **options)
    theirs, ours = transformers_model(tmp_path), load_model(tmp_path, dtype="float32")
    expected = expected_logits(theirs, PROMPT)
    assert expected.std() > 0.1, "the checkpoint must say something"
    torch.testing.assert_close(logits_of(ours, PROMPT), expected, rtol=1e-4, atol=1e-4)
    assert greedy_tokens(ours, PROMPT, 20) == expected_tokens(theirs, PROMPT, 20)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_transformers_in_bfloat16(family: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family)
    theirs = transformers_model(tmp_path).to(torch.bfloat16)
    ours = load_model(tmp_path, dtype="bfloat16")
    expected = expected_logits(theirs, PROMPT).float()
    distance = (logits_of(ours, PROMPT) - expected).norm() / expected.norm()
    assert distance < 0.03


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_pieces_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    model = load_model(tiny_checkpoint(tmp_path, family), dtype="float32")
    sequence = DenseSequence(model)
    pieces = [sequence.extend(PROMPT[start:end]) for start, end in ((0, 3), (3, 20), (20, None))]
    torch.testing.assert_close(torch.cat(pieces), logits_of(model, PROMPT), rtol=1e-4, atol=1e-5)


def test_a_multimodal_gemma_is_loaded_as_its_text_model(tmp_path: Path) -> None:
    from transformers import AutoConfig, Gemma3Config, Gemma3ForConditionalGeneration

    # (transformers leaves the soft cap out of its multimodal class)
    tiny_checkpoint(tmp_path / "text", "gemma3", final_logit_softcapping=None)
    text = AutoConfig.from_pretrained(tmp_path / "text")
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    theirs: Any = Gemma3ForConditionalGeneration(config)
    fill_randomly(theirs)
    theirs.save_pretrained(tmp_path / "both")
    ours = load_model(tmp_path / "both", dtype="float32")
    assert ours.config == load_config(tmp_path / "text")
    expected = expected_logits(theirs.eval(), PROMPT)
    torch.testing.assert_close(logits_of(ours, PROMPT), expected, rtol=1e-4, atol=1e-4)
