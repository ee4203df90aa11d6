"""Gated delta layers (Gated DeltaNet, arXiv 2412.06464) as Qwen3-Next has them: instead of KV that
grows a layer keeps a state of one size, and the last rows of a short convolution.

How rows change the state is told in `triptych_kernels.reference_delta`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.config import DeltaConfig, ModelConfig
from triptych.models.layers import Norm
from triptych.models.seams import DeltaRows, KvView, StateView
from triptych.models.weights import Part, WeightReader
from triptych_kernels import silu_mul
from triptych_kernels.packer import DeltaRule, LinearLike


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """One layer in place of attention. rows [M, H] (normed) → [M, H] without the residual."""

    layer: int
    sizes: DeltaConfig
    mixed: LinearLike  # [C, H]: queries, keys, values before the convolution
    output_gate: LinearLike  # [Hv·Dv, H]
    rates: LinearLike  # float32 [2·Hv, H]: how much is taken, how fast is forgotten
    conv: Tensor  # float32 [K, C]
    decay: Tensor  # float32 [Hv], below zero
    decay_bias: Tensor  # float32 [Hv]
    norm: Norm  # of each head's values
    output: LinearLike
    rule: DeltaRule

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, kv: KvView) -> Tensor:
        assert isinstance(kv, StateView), "this view of the KV keeps no states"
        taken, forgotten = self.rates(rows).chunk(2, dim=-1)
        # Composed: torch.sigmoid's bits depend on where an element lies, and so may softplus's.
        raised = forgotten + self.decay_bias
        softplus = torch.clamp(raised, min=0) + torch.log1p(torch.exp(-raised.abs()))
        values = kv.take_in(
            self.layer,
            DeltaRows(
                mixed=self.mixed(rows),
                decay=torch.exp(self.decay * softplus),
                beta=1.0 / (1.0 + torch.exp(-taken)),
                conv=self.conv,
                sizes=self.sizes,
                rule=self.rule,
            ),
        )
        gate = self.output_gate(rows).float()
        gated = silu_mul(gate, self.norm(values).flatten(1))
        return self.output(gated.to(rows.dtype))


def read_delta(
    reader: WeightReader, config: ModelConfig, sizes: DeltaConfig, layer: int
) -> GatedDelta:
    """Raises ModelError."""
    prefix, hidden = f"model.layers.{layer}.linear_attn", config.hidden_size
    stored = Part(f"{prefix}.in_proj_qkvz.weight", sizes.mixed_dim + sizes.values)
    mixed, gate = _projection_rows(sizes)
    conv = reader.tensor(f"{prefix}.conv1d.weight", sizes.mixed_dim, 1, sizes.conv_tokens)
    return GatedDelta(
        layer,
        sizes,
        mixed=reader.joined([stored], hidden, order=mixed),
        output_gate=reader.joined([stored], hidden, order=gate),
        rates=reader.joined(
            [Part(f"{prefix}.in_proj_ba.weight", 2 * sizes.value_heads)],
            hidden,
            exact=True,
            order=_rate_rows(sizes),
        ),
        conv=conv[:, 0].t().contiguous(),
        decay=-torch.exp(reader.tensor(f"{prefix}.A_log", sizes.value_heads)),
        decay_bias=reader.tensor(f"{prefix}.dt_bias", sizes.value_heads),
        norm=Norm(
            reader.tensor(f"{prefix}.norm.weight", sizes.value_dim), config.rms_norm_eps, 0.0
        ),
        output=reader.linear([f"{prefix}.out_proj"], sizes.values, [hidden], bias=False),
        rule=reader.gated_delta,
    )


def _projection_rows(sizes: DeltaConfig) -> tuple[Tensor, Tensor]:
    """Of the stored projection, [key heads × (query | key | its value heads | their gates)], the
    rows of queries, keys and values, and those of gates, int64.
    """
    own_values = sizes.values // sizes.key_heads
    kinds = [sizes.key_dim, sizes.key_dim, own_values, own_values]
    stored = torch.arange(sizes.key_heads * sum(kinds)).view(sizes.key_heads, -1)
    query, key, value, gate = (part.flatten() for part in torch.split(stored, kinds, dim=1))
    return torch.cat([query, key, value]), gate


def _rate_rows(sizes: DeltaConfig) -> Tensor:
    """Of the stored projection, [key heads × (taken | forgotten)] of their value heads."""
    stored = torch.arange(2 * sizes.value_heads).view(sizes.key_heads, 2, -1)
    return torch.cat([stored[:, 0].flatten(), stored[:, 1].flatten()])
