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

from triptych.testing.tiny_tokenizers import byte_level, save_folder

VOCAB_SIZE = 199  # of `tiny_checkpoint`
WINDOW = 8  # of its sliding layers

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

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


def tiny_llama(path: Path, *, num_layers: int = 3, seed: int = 0) -> Path:
    """A Llama that can be served: any text encodes, ChatML template, eos <|im_end|>.

    Its answers are noise, but always the same noise. Needs no transformers.
    """
    backend = byte_level()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": backend.token_to_id("<|im_end|>"),
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": _CHATML,
    }
    save_folder(path, backend, {"config.json": config, "tokenizer_config.json": tokenizer_config})
    source = torch.Generator().manual_seed(seed)
    weights = {
        f"{name}.weight": _noise(shape, source) + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in _llama_shapes(backend.get_vocab_size(), 64, 128, 32, num_layers)
    }
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def tiny_checkpoint(
    path: Path, family: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> Path:
    """A random model of a family, as transformers saves it; `overrides` are configuration values.

    Weights are large enough for attention to matter. Sliding layers see `WINDOW` positions.
    """
    import transformers

    class_name, values = _FAMILIES[family]
    config = getattr(transformers, class_name)(**(_SIZES | values | overrides))
    auto: Any = transformers.AutoModelForCausalLM  # untyped
    model = auto.from_config(config, dtype=torch.float32)
    fill_randomly(model, seed)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def fill_randomly(model: Any, seed: int = 0) -> None:
    """Gives every parameter of a transformers model noise of a size that matters."""
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = _noise(tuple(parameter.shape), source)
        parameter.data = parameter.data + noise if parameter.dim() == 1 else noise
    model.tie_weights()


def edit_config(path: Path, **values: Any) -> None:
    """Changes keys of a directory's config.json; None removes the key."""
    file = path / "config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def _llama_shapes(
    vocab: int, hidden: int, inner: int, kv: int, num_layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens", (vocab, hidden)
    for index in range(num_layers):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm", (hidden,)
        yield f"{layer}.self_attn.q_proj", (hidden, hidden)
        yield f"{layer}.self_attn.k_proj", (kv, hidden)
        yield f"{layer}.self_attn.v_proj", (kv, hidden)
        yield f"{layer}.self_attn.o_proj", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm", (hidden,)
        yield f"{layer}.mlp.gate_proj", (inner, hidden)
        yield f"{layer}.mlp.up_proj", (inner, hidden)
        yield f"{layer}.mlp.down_proj", (hidden, inner)
    yield "model.norm", (hidden,)
    yield "lm_head", (vocab, hidden)


def _noise(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=source) * 0.15
