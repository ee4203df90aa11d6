"""Tiny random checkpoints on disk: one that a cluster can serve, and one of each family.

Everything is seeded: the same call writes the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from triptych.testing.nsa_checkpoint import tiny_nsa
from triptych.testing.tiny_tokenizers import byte_level, save_folder

VOCAB_SIZE = 199  # of `tiny_checkpoint`
WINDOW = 8  # of its sliding layers
INDEX_TOP_K = 24  # tokens that a row of its deepseek_v32 attends to

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "chat_template": _CHATML,
}

# Of all that a cluster can serve.
SERVED: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GRANITE: dict[str, Any] = {
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.6,
    "logits_scaling": 6.0,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 12,
    "v_head_dim": 16,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW, "head_dim": 24}),
    "qwen2": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "rms_norm_eps": 1e-5}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 7,
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 20.0,
        },
    ),
}
FAMILIES = tuple(_FAMILIES)

# Where a family can, its second layer is dense.
_MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "sliding_window": WINDOW}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            "num_experts": 12,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 72,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 32,
            "num_experts": 16,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": (
        "OlmoeConfig",
        {"num_experts": 8, "num_experts_per_tok": 3, "intermediate_size": 40},
    ),
    "granitemoe": ("GraniteMoeConfig", {"intermediate_size": 40, **_GRANITE}),
    "granitemoeshared": (
        "GraniteMoeSharedConfig",
        {"intermediate_size": 40, "shared_intermediate_size": 72, **_GRANITE},
    ),
    "deepseek_v2": (
        "DeepseekV2Config",
        {**_LATENT, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5},
    ),
    "deepseek_v3": ("DeepseekV3Config", {**_LATENT, "n_shared_experts": 2}),
    "deepseek_v32": (
        "DeepseekV32Config",
        {
            **_LATENT,
            "n_shared_experts": 2,
            "index_n_heads": 8,
            "index_head_dim": 20,
            "index_topk": INDEX_TOP_K,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        {
            "head_dim": 32,
            "intermediate_size": 40,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": WINDOW,
        },
    ),
}
MIXTURES = tuple(_MIXTURES)

# Layers that keep states; its second layer is dense.
_LINEAR: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 12,
            "linear_value_head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 72,
            "mlp_only_layers": [1],
        },
    ),
}


def tiny_llama(path: Path, *, num_layers: int = 3, seed: int = 0) -> Path:
    """A Llama that can be served: any text encodes, ChatML template, eos <|im_end|>.

    Its answers are noise, but always the same noise. Needs no transformers.
    """
    config = SERVED | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
    }
    return save_served(path, config, _llama_shapes(64, 128, 32, num_layers), seed)


def save_served(
    path: Path, config: dict[str, Any], shapes: Iterator[tuple[str, tuple[int, ...]]], seed: int
) -> Path:
    """Noise for the tensors of `shapes`, names without .weight, and for the vocabulary's matrices;
    a tokenizer; `config` with what belongs to it.
    """
    backend = byte_level()
    vocab_size = backend.get_vocab_size()
    end = backend.token_to_id("<|im_end|>")
    files = {
        "config.json": config | {"vocab_size": vocab_size, "eos_token_id": end},
        "tokenizer_config.json": _TOKENIZER_CONFIG,
    }
    save_folder(path, backend, files)
    vocabulary = (vocab_size, config["hidden_size"])
    source = torch.Generator().manual_seed(seed)
    weights = {
        f"{name}.weight": _noise(shape, source) + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in (
            ("model.embed_tokens", vocabulary),
            *shapes,
            ("lm_head", vocabulary),
        )
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def tiny_checkpoint(
    path: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> Path:
    """A random model of a family, as its library saves it; `overrides` are configuration values.

    Weights are large enough for attention to matter. Sliding layers see `WINDOW` positions.
    """
    if family == "nsa":  # which transformers does not have
        return tiny_nsa(path, seed=seed, **({"vocab_size": VOCAB_SIZE} | overrides))
    import transformers

    class_name, values = (_FAMILIES | _MIXTURES | _LINEAR)[family]
    config = getattr(transformers, class_name)(**(_SIZES | values | overrides))
    auto: Any = transformers.AutoModelForCausalLM  # untyped
    with torch.random.fork_rng(devices=[]):  # sinks and some biases begin with noise
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
    fill_randomly(model, seed)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def served_checkpoint(path: Path, family: str, *, seed: int = 0, **overrides: Any) -> Path:
    """The same, with a tokenizer: any text encodes, as with `tiny_llama`."""
    backend = byte_level()
    sizes = {
        "vocab_size": backend.get_vocab_size(),
        "eos_token_id": backend.token_to_id("<|im_end|>"),
        "max_position_embeddings": SERVED["max_position_embeddings"],
    }
    tiny_checkpoint(path, family, seed=seed, **(sizes | overrides))
    save_folder(path, backend, {"tokenizer_config.json": _TOKENIZER_CONFIG})
    return path


def fill_randomly(model: Any, seed: int = 0) -> None:
    """Gives every parameter of a transformers model noise of a size that matters, and what corrects
    the choice of experts, which is no parameter.
    """
    source = torch.Generator().manual_seed(seed)
    corrections = [b for name, b in model.named_buffers() if name.endswith("correction_bias")]
    for parameter in [*model.parameters(), *corrections]:
        noise = _noise(tuple(parameter.shape), source)
        parameter.data = parameter.data + noise if parameter.dim() == 1 else noise
    model.tie_weights()


def edit_config(path: Path, **values: Any) -> None:
    """Changes keys of a directory's config.json; None removes the key."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def attention_shapes(layer: str, hidden: int, kv: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A Llama's layer without its FFN, as many query heads as fill the hidden size."""
    yield f"{layer}.input_layernorm", (hidden,)
    yield f"{layer}.self_attn.q_proj", (hidden, hidden)
    yield f"{layer}.self_attn.k_proj", (kv, hidden)
    yield f"{layer}.self_attn.v_proj", (kv, hidden)
    yield f"{layer}.self_attn.o_proj", (hidden, hidden)
    yield f"{layer}.post_attention_layernorm", (hidden,)


def ffn_shapes(block: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{block}.gate_proj", (inner, hidden)
    yield f"{block}.up_proj", (inner, hidden)
    yield f"{block}.down_proj", (hidden, inner)


def _llama_shapes(
    hidden: int, inner: int, kv: int, num_layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(num_layers):
        layer = f"model.layers.{index}"
        yield from attention_shapes(layer, hidden, kv)
        yield from ffn_shapes(f"{layer}.mlp", hidden, inner)
    yield "model.norm", (hidden,)


def _noise(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=source) * 0.15
