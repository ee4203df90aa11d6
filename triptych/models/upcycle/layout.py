"""Names and shapes of the tensors: those of a dense Llama-like checkpoint, and those that a mixture
of experts has instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.safetensors_writer import Shape

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class MoeFormat:
    """How a family of mixtures is spelled in Hugging Face's checkpoints."""

    architecture: str
    model_type: str
    router: str  # below model.layers.<n>.
    gate: str  # of expert {}
    up: str
    down: str


_MIXTRAL = MoeFormat(
    "MixtralForCausalLM",
    "mixtral",
    "block_sparse_moe.gate.weight",
    "block_sparse_moe.experts.{}.w1.weight",
    "block_sparse_moe.experts.{}.w3.weight",
    "block_sparse_moe.experts.{}.w2.weight",
)
_QWEN3 = MoeFormat(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    "mlp.gate.weight",
    "mlp.experts.{}.gate_proj.weight",
    "mlp.experts.{}.up_proj.weight",
    "mlp.experts.{}.down_proj.weight",
)
_FORMATS = {"llama": _MIXTRAL, "mistral": _MIXTRAL, "qwen3": _QWEN3}


def choose_format(config: ModelConfig, origin: str) -> MoeFormat:
    """Raises ModelError naming what the format has no room for, or the supported families."""
    found = _FORMATS.get(config.architecture)
    if config.moe is not None:
        raise ModelError(f"{origin}: is a mixture of experts already; expected a dense checkpoint")
    if found is None:
        raise ModelError(
            f"{origin}: family {config.architecture!r} cannot be upcycled; "
            f"supported: {', '.join(_FORMATS)}"
        )
    if config.ffn_bias or (found is _MIXTRAL and (config.qkv_bias or config.output_bias)):
        which = "mlp_bias" if config.ffn_bias else "attention_bias"
        raise ModelError(f"{origin}: {which}: {found.architecture} has no such biases")
    if len(set(config.windows)) > 1 or (found is _QWEN3 and config.windows[0] is not None):
        raise ModelError(f"{origin}: {found.architecture} has no layers with sliding windows")
    return found


def attention_shapes(config: ModelConfig, layer: int) -> dict[str, Shape]:
    """All of a layer but its FFN: what is copied as it is."""
    prefix = f"model.layers.{layer}"
    hidden, head = config.hidden_size, config.head_dim
    q, kv = config.num_heads * head, config.num_kv_heads * head
    found: dict[str, Shape] = {f"{prefix}.input_layernorm.weight": (hidden,)}
    for name, rows in (("q", q), ("k", kv), ("v", kv)):
        found[f"{prefix}.self_attn.{name}_proj.weight"] = (rows, hidden)
        if config.qkv_bias:
            found[f"{prefix}.self_attn.{name}_proj.bias"] = (rows,)
    found[f"{prefix}.self_attn.o_proj.weight"] = (hidden, q)
    if config.output_bias:
        found[f"{prefix}.self_attn.o_proj.bias"] = (hidden,)
    if config.qk_norm:
        found[f"{prefix}.self_attn.q_norm.weight"] = (head,)
        found[f"{prefix}.self_attn.k_norm.weight"] = (head,)
    found[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
    return found


def mixture_shapes(
    config: ModelConfig, spelled: MoeFormat, num_experts: int, expert_size: int
) -> dict[str, Shape]:
    """Every tensor of the mixture, in the order in which they are made and written."""
    hidden = config.hidden_size
    found: dict[str, Shape] = {EMBEDDING: (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        found |= attention_shapes(config, layer)
        prefix = f"model.layers.{layer}"
        found[f"{prefix}.{spelled.router}"] = (num_experts, hidden)
        for expert in range(num_experts):
            found[f"{prefix}.{spelled.gate.format(expert)}"] = (expert_size, hidden)
            found[f"{prefix}.{spelled.up.format(expert)}"] = (expert_size, hidden)
            found[f"{prefix}.{spelled.down.format(expert)}"] = (hidden, expert_size)
    found[NORM] = (hidden,)
    if not config.tie_word_embeddings:
        found[HEAD] = (config.vocab_size, hidden)
    return found
