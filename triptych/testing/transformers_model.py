"""SmolLM2 in `transformers`, from the same GGUF file: the implementation we compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def transformers_smollm2(file: Path) -> Any:
    """What `from_pretrained(gguf_file=…)` builds, without the package it wants for that."""
    from transformers import LlamaConfig, LlamaForCausalLM, modeling_gguf_pytorch_utils

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    theirs: Any = LlamaForCausalLM(config)
    load: Any = modeling_gguf_pytorch_utils.load_gguf_checkpoint  # untyped
    weights = load(str(file), return_tensors=True, model_to_load=theirs)["tensors"]
    loaded = theirs.load_state_dict(weights, strict=False)
    assert loaded.missing_keys in ([], ["lm_head.weight"]) and not loaded.unexpected_keys
    theirs.tie_weights()
    return theirs.eval()
