"""What a head starts from: the target's last layer, reading the highest tap and the next token.

That is a poor drafter, but one that speaks the target's language already.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from triptych.models.latent import LatentHeads
from triptych.models.layers import Attention, LocalExperts
from triptych.models.model import Model
from triptych.training.head_module import HeadModule
from triptych.training.teacher import rows_of
from triptych_kernels.packer import LinearLike


@torch.no_grad()
def start_from_target(module: HeadModule, model: Model, draft_ids: Tensor, scale: float) -> None:
    """`scale`: RMS of the target's residual stream at the highest tap; the layer's branches are as
    large as there.
    """
    size, taps = module.config.hidden_size, len(module.config.taps)
    eye = torch.eye(size)
    weights = {
        "lm_head.weight": rows_of(model.head)[draft_ids] / model.config.logits_divisor,
        "model.norm.weight": model.norm.scaled_weight,
        "fuse.weight": torch.cat([torch.zeros(size, size * (taps - 1)), eye], dim=1),
        "combine.weight": scale * torch.cat([0.5 * eye, eye], dim=1),
    }
    for index in range(module.config.num_layers):
        prefix = f"model.layers.{index}"
        weights |= {f"{prefix}.{name}": value for name, value in _last_layer(model).items()}
    module.load_state_dict(weights, strict=False)


def _last_layer(model: Model) -> dict[str, Tensor]:
    layer, attention = model.layers[-1], model.layers[-1].attention
    weights = {
        "input_layernorm.weight": layer.before_attention.scaled_weight,
        "post_attention_layernorm.weight": layer.before_ffn.scaled_weight,
    }
    assert isinstance(attention, Attention), "a model that keeps states verifies no drafts"
    if not isinstance(attention.qkv, LatentHeads):
        sizes = [
            n * attention.head_dim for n in (attention.num_heads, *[attention.num_kv_heads] * 2)
        ]
        qkv = cast(LinearLike, attention.qkv)
        query, key, value = torch.split(rows_of(qkv)[: sum(sizes)], sizes)
        weights |= {
            "self_attn.q_proj.weight": query,
            "self_attn.k_proj.weight": key,
            "self_attn.v_proj.weight": value,
            "self_attn.o_proj.weight": rows_of(attention.output),
        }
    if layer.mixture is None and isinstance(model.experts, LocalExperts):
        ffn = model.experts.units[-1][0]
        gate, up = rows_of(ffn.gate_up).chunk(2)
        weights |= {
            "mlp.gate_proj.weight": gate,
            "mlp.up_proj.weight": up,
            "mlp.down_proj.weight": rows_of(ffn.down),
        }
    return weights
