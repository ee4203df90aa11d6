"""GGUF metadata in the words of Hugging Face's config.json, so that families are parsed once."""

from __future__ import annotations

from typing import Any

from triptych.errors import ModelError
from triptych.models.fields import Fields
from triptych.models.gguf_header import GgufHeader

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",  # Mistral as well: llama.cpp keeps no window for it
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_EMBEDDING = "token_embd.weight"


def config_fields(header: GgufHeader, origin: str) -> Fields:
    """What config.json would say. Raises ModelError naming the file and the GGUF key."""
    found = Fields(header.metadata, origin)
    arch = found.text("general.architecture")
    if arch not in _ARCHITECTURES:
        raise ModelError(
            f"{origin}: architecture {arch!r} is not supported; "
            f"supported in GGUF: {', '.join(_ARCHITECTURES)}"
        )
    if found.size(f"{arch}.expert_count", 0, minimum=0):
        raise found.error(
            f"{arch}.expert_count",
            "mixtures of experts are not supported in GGUF; use the original weights",
        )
    if _EMBEDDING not in header.tensors:
        raise ModelError(f"{origin}: tensor {_EMBEDDING!r} is missing")
    heads = _heads(found, f"{arch}.attention.head_count")
    hidden_size = found.size(f"{arch}.embedding_length")
    head_dim = found.size(f"{arch}.attention.key_length", max(hidden_size // heads, 1))
    values = {
        "architectures": [_ARCHITECTURES[arch]],
        "vocab_size": header.tensors[_EMBEDDING].shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": found.size(f"{arch}.feed_forward_length"),
        "num_hidden_layers": found.size(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _heads(found, f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": found.size(f"{arch}.context_length"),
        "rms_norm_eps": found.positive(f"{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": found.optional_positive(f"{arch}.rope.freq_base"),
        "rope_scaling": _rope_scaling(found, arch),
        "partial_rotary_factor": found.size(f"{arch}.rope.dimension_count", head_dim) / head_dim,
        "attention_bias": "blk.0.attn_output.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in header.tensors,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "eos_token_id": _end_tokens(found),
    }
    if arch == "gemma3":
        values |= _gemma_values(found, arch, values)
    return Fields(values, origin)


def _heads(found: Fields, key: str, default: int | None = None) -> int:
    value = found.get(key)
    if isinstance(value, list) and value:
        if len(set(value)) > 1:
            raise found.error(key, "layers with different head counts are not supported")
        return Fields({key: value[0]}, found.origin).size(key)
    return found.size(key, default)


def _rope_scaling(found: Fields, arch: str) -> dict[str, Any] | None:
    """Llama 3's own scaling is no metadata: its factors are a tensor, `rope_freqs.weight`."""
    kind = found.text(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return None
    return {
        "rope_type": kind,
        "factor": found.positive(f"{arch}.rope.scaling.factor"),
        "original_max_position_embeddings": found.get(
            f"{arch}.rope.scaling.original_context_length"
        ),
    }


def _end_tokens(found: Fields) -> list[int]:
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
    return [token for key in keys for token in found.token_ids(key)]


def _gemma_values(found: Fields, arch: str, values: dict[str, Any]) -> dict[str, Any]:
    # llama.cpp knows the 27B model, the one with another scale, by its 62 layers.
    is_27b = values["num_hidden_layers"] == 62
    head_width = values["hidden_size"] // values["num_attention_heads"]
    return {
        "query_pre_attn_scalar": head_width if is_27b else values["head_dim"],
        "sliding_window": found.size(f"{arch}.attention.sliding_window"),
        "rope_local_base_freq": found.optional_positive(f"{arch}.rope.freq_base_swa"),
        "final_logit_softcapping": found.optional_positive(f"{arch}.final_logit_softcapping"),
        "attn_logit_softcapping": found.optional_positive(f"{arch}.attn_logit_softcapping"),
    }
