"""A draft head as torch trains it, in the names that its checkpoint has.

Row t joins token t+1 with what the target knew at position t and predicts token t+2. While it
drafts, a head has the target's states up to some position only. Training unrolls that: in pass j
row t pretends that position t−j was the last one known ("training-time test", EAGLE-3, arXiv
2503.01840, section 3.2). What stands for the unknown states tells the two kinds apart:

- eagle3: the head's own output of the row before, and the token that was drafted there;
- parallel: the last known state and token and a learned mark of the distance, so that all rows
  can be computed in one pass (after DFlash, arXiv 2602.06036, whose block this is).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.drafters.heads.head_config import HeadConfig, layer_config
from triptych.models.config import ModelConfig
from triptych_kernels import rotary_cos_sin


class HeadModule(nn.Module):
    """Names of parameters are those of the checkpoint. fp32; compute under autocast."""

    def __init__(self, config: HeadConfig, target: ModelConfig) -> None:
        super().__init__()
        self.config = config
        shape = layer_config(target, config)
        size = config.hidden_size
        self.tap_norms = nn.ModuleList(_RmsNorm(size, shape.rms_norm_eps) for _ in config.taps)
        self.embed_norm = _RmsNorm(size, shape.rms_norm_eps)
        self.feature_norm = _RmsNorm(size, shape.rms_norm_eps)
        self.fuse = nn.Linear(len(config.taps) * size, size, bias=False)
        self.combine = nn.Linear(2 * size, size, bias=False)
        self.model = _Body(shape)
        self.lm_head = nn.Linear(size, config.draft_vocab_size, bias=False)
        if config.kind == "parallel":
            self.marks = nn.Parameter(torch.randn(config.block - 1, size) * 0.02)
        self._inv_freq = shape.ropes[0].inverse_frequencies(shape.head_dim)
        self._attention_scaling = shape.ropes[0].attention_scaling

    def forward(self, embedded: Tensor, taps: Tensor, passes: int, first: int = 0) -> list[Tensor]:
        """embedded [B, T, H]: of token t+1 in row t; taps [B, T, taps·H]: states of position t.

        Per pass the normed states [B, T − first, H] that `lm_head` reads, of rows from `first` on;
        the first j rows of pass j mean nothing. Earlier rows are only read from.
        """
        size = self.config.hidden_size
        parts = torch.split(taps, size, dim=-1)
        normed = [norm(part) for norm, part in zip(self.tap_norms, parts, strict=True)]
        known = self.fuse(torch.cat(normed, dim=-1))
        embedded = self.embed_norm(embedded)
        rotary = self._rotary(embedded.shape[1])
        kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.model.layers]
        hidden = self.model.layers_forward(self._join(embedded, known), rotary, kept)
        embedded, known, hidden = embedded[:, first:], known[:, first:], hidden[:, first:]
        rotary = rotary[0][first:], rotary[1][first:]
        outputs = [self.model.norm(hidden)]
        for index in range(1, passes):
            if self.config.kind == "parallel":
                marked = _shift(embedded, index) + self.marks[index - 1]
                rows = self._join(marked, _shift(known, index))
            else:
                rows = self._join(embedded, _shift(hidden, 1))
            hidden = self.model.layers_forward(rows, rotary, kept)
            outputs.append(self.model.norm(hidden))
        return outputs

    def _join(self, embedded: Tensor, feature: Tensor) -> Tensor:
        joined: Tensor = self.combine(torch.cat([embedded, self.feature_norm(feature)], dim=-1))
        return joined

    def _rotary(self, rows: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(rows)
        return rotary_cos_sin(positions, self._inv_freq, self._attention_scaling)


class _Body(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
        self.norm = _RmsNorm(shape.hidden_size, shape.rms_norm_eps)

    def layers_forward(
        self,
        rows: Tensor,
        rotary: tuple[Tensor, Tensor],
        passes_kv: list[list[tuple[Tensor, Tensor]]],
    ) -> Tensor:
        """One pass; `passes_kv` per layer: keys and values of the passes before, grows by this."""
        for layer, kept in zip(self.layers, passes_kv, strict=True):
            rows = layer(rows, rotary, kept)
        return rows


class _Layer(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = _RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = _Ffn(shape)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], kept: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, kept)
        ffn: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + ffn


class _Attention(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        self._heads, self._kv_heads = shape.num_heads, shape.num_kv_heads
        self._dim = shape.head_dim
        self._scale = shape.attention_scale
        size = shape.hidden_size
        self.q_proj = nn.Linear(size, self._heads * self._dim, bias=False)
        self.k_proj = nn.Linear(size, self._kv_heads * self._dim, bias=False)
        self.v_proj = nn.Linear(size, self._kv_heads * self._dim, bias=False)
        self.o_proj = nn.Linear(self._heads * self._dim, size, bias=False)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], kept: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        q = _rotate(self._split(self.q_proj(x), self._heads), rotary)
        k = _rotate(self._split(self.k_proj(x), self._kv_heads), rotary)
        kept.append((k, self._split(self.v_proj(x), self._kv_heads)))
        mixed = attend_unrolled(q, kept, self._scale)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:-1], heads, self._dim).transpose(1, 2)


class _Ffn(nn.Module):
    def __init__(self, shape: ModelConfig) -> None:
        super().__init__()
        size, inner = shape.hidden_size, shape.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class _RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self._eps)


def attend_unrolled(q: Tensor, kept: list[tuple[Tensor, Tensor]], scale: float) -> Tensor:
    """q [B, Hq, R, D] of pass j; kept: keys and values of the passes 0..j, of pass 0
    [B, Hkv, T, D], of the others [B, Hkv, R, D], whose rows are the last R of the T.

    Row t sees pass 0 up to position t−j, then pass i at position t−j+i: the path that one would
    have drafted from there.
    """
    last, (rows, total) = len(kept) - 1, (q.shape[2], kept[0][0].shape[2])
    group = q.shape[1] // kept[0][0].shape[1]
    keys, values = (x.repeat_interleave(group, dim=1) for x in kept[0])
    seen = torch.ones(rows, total, dtype=torch.bool).tril(total - rows - last)
    scores = (q @ keys.transpose(-1, -2)).float() * scale
    scores = scores.masked_fill(~seen, -torch.inf)
    path = [
        [_shift(x, last - i, 2).repeat_interleave(group, dim=1) for x in pair]
        for i, pair in enumerate(kept[1:], 1)
    ]
    own = [(q.float() * k.float()).sum(-1, keepdim=True) * scale for k, _ in path]
    weights = torch.softmax(torch.cat([scores, *own], dim=-1), dim=-1)
    weights = weights.to(values.dtype)
    mixed = weights[..., :total] @ values
    for place, (_, v) in enumerate(path):
        mixed = mixed + weights[..., total + place, None] * v
    return mixed


def _shift(x: Tensor, by: int, dim: int = 1) -> Tensor:
    """Rows move down by so many places; zeros come in at the top."""
    if by == 0:
        return x
    kept = x.narrow(dim, 0, x.shape[dim] - by)
    shape = list(x.shape)
    shape[dim] = by
    return torch.cat([x.new_zeros(shape), kept], dim=dim)


def _rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The halves' rotation of Llama checkpoints. x [B, heads, T, D]; cos, sin [T, D/2]."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)
