"""A tiny random NSA model on disk, as flash-linear-attention writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# Blocks of 8 tokens, of which a row reads 4, and 12 tokens in any case: 32 tokens and the window
# are soon less than everything.
_CONFIG: dict[str, Any] = {
    "architectures": ["NSAForCausalLM"],
    "model_type": "nsa",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 16,
    "qkv_bias": False,
    "block_size": 8,
    "block_counts": 4,
    "window_size": 12,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "hidden_ratio": 4,
    "intermediate_size": 96,
    "hidden_act": "swish",
    "norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def tiny_nsa(path: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Noise of a size that matters; `overrides` are configuration values, `vocab_size` among them.
    The same call writes the same weights.
    """
    config = _CONFIG | overrides
    source = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(shape, generator=source) * 0.15 + (1.0 if "norm" in name else 0.0)
        for name, shape in _shapes(config)
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads, dim = config["num_heads"], config["num_kv_heads"], config["head_dim"]
    yield "model.embeddings.weight", (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.attn_norm.weight", (hidden,)
        for name, rows in (("q", heads * dim), ("k", kv_heads * dim), ("v", kv_heads * dim)):
            yield f"{layer}.attn.{name}_proj.weight", (rows, hidden)
            if config["qkv_bias"]:
                yield f"{layer}.attn.{name}_proj.bias", (rows,)
        yield f"{layer}.attn.g_proj.weight", (heads * 3, hidden)
        yield f"{layer}.attn.o_proj.weight", (hidden, heads * dim)
        yield f"{layer}.mlp_norm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)
