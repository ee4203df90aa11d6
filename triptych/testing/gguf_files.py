"""Writes a Hugging Face directory as GGUF, changing what llama.cpp's converter changes.

Names come from the gguf package's own tables, so a reader is checked against them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from numpy.typing import NDArray
from safetensors.numpy import load_file

_ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
}

Array = NDArray[np.float32]


def write_gguf(
    directory: Path,
    path: Path,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
) -> Path:
    """Converts config.json, model.safetensors and tokenizer.json, the last if it is there and
    byte-level; matrices are quantised to `kind`.

    `kinds` names those that are quantised otherwise, by part of their Hugging Face name.
    """
    config = json.loads((directory / "config.json").read_text())
    arch = _ARCHITECTURES[config["architectures"][0]]
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _add_metadata(writer, config)
    if (directory / "tokenizer.json").is_file():
        _add_tokenizer(writer, directory)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, weight in load_file(directory / "model.safetensors").items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert gguf_name is not None, name
        weight = _converted(arch, config, name, weight)
        if weight.ndim == 1:
            writer.add_tensor(gguf_name, weight)
        else:
            own = next((own for part, own in (kinds or {}).items() if part in name), kind)
            writer.add_tensor(gguf_name, gguf.quantize(weight, own), raw_dtype=own)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config, rope))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_eos_token_id(config["eos_token_id"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    rope = config.get("rope_parameters") or config
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config["architectures"] == ["Gemma3ForCausalLM"]:
        writer.add_sliding_window(config["sliding_window"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def _add_tokenizer(writer: GGUFWriter, directory: Path) -> None:
    stored = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    ids: dict[str, int] = dict(stored["model"]["vocab"])
    kinds = dict.fromkeys(ids, gguf.TokenType.NORMAL)
    for token in stored["added_tokens"]:
        ids[token["content"]] = token["id"]
        special = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        kinds[token["content"]] = special
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds[token] for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    if "chat_template" in settings:
        writer.add_chat_template(settings["chat_template"])


def _converted(arch: gguf.MODEL_ARCH, config: dict[str, Any], name: str, weight: Array) -> Array:
    if arch == gguf.MODEL_ARCH.LLAMA and ".q_proj." in name:
        return _interleaved(weight, config["num_attention_heads"])
    if arch == gguf.MODEL_ARCH.LLAMA and ".k_proj." in name:
        return _interleaved(weight, config["num_key_value_heads"])
    if arch == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
        return weight + np.float32(1)
    return weight


def _interleaved(weight: Array, heads: int) -> Array:
    """Rows of each head from first half, second half to pairs side by side."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _llama3_factors(config: dict[str, Any], rope: dict[str, Any]) -> Array:
    """Divisors of the inverse frequencies, as llama.cpp's converter computes them."""
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for exponent in range(0, dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (exponent / dim)
        kept = (rope["original_max_position_embeddings"] / wavelength - low) / (high - low)
        kept = min(max(kept, 0.0), 1.0)
        factors.append(1 / ((1 - kept) / factor + kept))
    return np.array(factors, dtype=np.float32)
