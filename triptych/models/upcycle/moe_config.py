"""config.json of the mixture: the dense model's values in the words of the new format.

Spelled as transformers 4 did (`rope_theta`, `rope_scaling`, `torch_dtype`), which 5 reads as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from triptych.models.upcycle.layout import MoeFormat
from triptych.models.upcycle.recipe import Recipe

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}

# All Llama 3.1 to 3.3 models; only the factor differs.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_len": 8192}


def moe_config(
    config: ModelConfig, spelled: MoeFormat, recipe: Recipe, expert_size: int
) -> dict[str, Any]:
    """`config.ropes` must be complete, see `whole_rope`."""
    values: dict[str, Any] = {
        "architectures": [spelled.architecture],
        "model_type": spelled.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_model_len,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.ropes[0].theta,
        "rope_scaling": _rope_scaling(config.ropes[0]),
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": recipe.dtype,
        "use_cache": True,
        "num_experts_per_tok": recipe.top_k,
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
    }
    if spelled.model_type == "mixtral":
        return values | {
            "intermediate_size": expert_size,
            "num_local_experts": recipe.num_experts,
            "sliding_window": config.windows[0],
        }
    return values | {
        "intermediate_size": config.intermediate_size,  # of layers without experts; there are none
        "moe_intermediate_size": expert_size,
        "num_experts": recipe.num_experts,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": config.qkv_bias,
        "use_sliding_window": False,
    }


def whole_rope(rope: Rope, factors: Tensor, config: ModelConfig, origin: str) -> Rope:
    """The scaling behind a GGUF file's divisors of the frequencies [head_dim / 2].

    llama.cpp stores those of Llama 3 instead of the four numbers they are made of. Raises
    ModelError when they are not Llama 3's.
    """
    found = Rope(rope.theta, Llama3Scaling(float(factors.max()), **_LLAMA3))  # type: ignore[arg-type]
    plain = rope.inverse_frequencies(config.head_dim)
    made = found.inverse_frequencies(config.head_dim)
    if rope.scaling is None and torch.allclose(made, plain / factors, rtol=1e-4, atol=0.0):
        return found
    raise ModelError(
        f"{origin}: rope_freqs.weight: its factors are not those of Llama 3.1 and later; "
        "upcycle the Hugging Face directory that the file was made from"
    )


def _rope_scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, original_len):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original_len,
            }
        case YarnScaling() as yarn:
            return {
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_len,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "attention_factor": yarn.attention_scaling,
                "truncate": yarn.truncate,
            }
