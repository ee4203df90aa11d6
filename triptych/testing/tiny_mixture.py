"""A tiny mixture of experts on disk that a cluster can serve. Needs no transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from triptych.testing.checkpoints import SERVED, attention_shapes, ffn_shapes, save_served

_HIDDEN, _DENSE, _EXPERT, _KV = 64, 96, 48, 32


def tiny_mixture(
    path: Path, *, num_layers: int = 3, num_experts: int = 8, top_k: int = 2, seed: int = 0
) -> Path:
    """A Qwen2-MoE with a shared expert; its second layer is dense, the others are mixtures.

    As `tiny_llama` otherwise: any text encodes, and its answers are always the same noise.
    """
    config = SERVED | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "qkv_bias": False,
        "intermediate_size": _DENSE,
        "num_hidden_layers": num_layers,
        "num_experts": num_experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "moe_intermediate_size": _EXPERT,
        "shared_expert_intermediate_size": _DENSE,
        "mlp_only_layers": [1] if num_layers > 1 else [],
    }
    return save_served(path, config, _shapes(num_layers, num_experts), seed)


def _shapes(num_layers: int, num_experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(num_layers):
        layer = f"model.layers.{index}"
        yield from attention_shapes(layer, _HIDDEN, _KV)
        if index == 1:
            yield from ffn_shapes(f"{layer}.mlp", _HIDDEN, _DENSE)
            continue
        yield f"{layer}.mlp.gate", (num_experts, _HIDDEN)
        for expert in range(num_experts):
            yield from ffn_shapes(f"{layer}.mlp.experts.{expert}", _HIDDEN, _EXPERT)
        yield from ffn_shapes(f"{layer}.mlp.shared_expert", _HIDDEN, _DENSE)
        yield f"{layer}.mlp.shared_expert_gate", (1, _HIDDEN)
    yield "model.norm", (_HIDDEN,)
