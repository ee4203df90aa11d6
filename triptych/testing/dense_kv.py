"""A KvView for one sequence, as simple as it gets: the yardstick for models and paged KV."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.models.model import Model
from triptych.models.seams import DeltaRows, IndexRows, NsaRows
from triptych_kernels import gated_delta, pad_rows


class DenseKv:
    """All keys and values of one sequence, per layer. `rows` of each pass are real, the rest pads.

    Set `rows` before every forward pass.
    """

    def __init__(self, num_layers: int) -> None:
        self.rows = 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._index: list[Tensor | None] = [None] * num_layers
        self._states: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Positions held."""
        return max((len(keys) for keys in self._keys if keys is not None), default=0)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        index: IndexRows | NsaRows | None = None,
    ) -> Tensor:
        keys = self._keys[layer] = _append(self._keys[layer], k[: self.rows])
        values = self._values[layer] = _append(self._values[layer], v[: self.rows])
        if isinstance(index, NsaRows):
            mixed = _three_parts(q[: self.rows], keys, values, index, scale)
            return torch.cat([mixed, q.new_zeros(q.shape[0] - self.rows, *q.shape[1:])])
        group = q.shape[1] // k.shape[1]
        scores = torch.einsum("qhd,khd->hqk", q[: self.rows], keys.repeat_interleave(group, 1))
        scores = scores.float() * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        key = torch.arange(keys.shape[0])
        row = key[-self.rows :, None]
        visible = key <= row
        if window is not None:
            visible &= key > row - window
        if index is not None:
            visible = visible & self._chosen(layer, index, visible)
        scores = scores.masked_fill(~visible, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, self.rows, 1)], dim=-1)
        weights = scores.softmax(-1)[..., : len(key)].to(v.dtype)
        mixed = torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, 1))
        return torch.cat([mixed, q.new_zeros(q.shape[0] - self.rows, *q.shape[1:])])

    def take_in(self, layer: int, rows: DeltaRows) -> Tensor:
        real = self.rows
        if layer not in self._states:
            sizes = rows.sizes
            self._states[layer] = (
                torch.zeros(sizes.value_heads, sizes.key_dim, sizes.value_dim),
                torch.zeros(sizes.conv_tokens - 1, sizes.mixed_dim),
            )
        state, history = self._states[layer]
        parts = rows.mixed[:real], rows.decay[:real], rows.beta[:real]
        values = gated_delta(*parts, rows.conv, state, history, rows.sizes.key_heads)
        return torch.cat([values, values.new_zeros(len(rows.mixed) - real, *values.shape[1:])])

    def _chosen(self, layer: int, index: IndexRows, visible: Tensor) -> Tensor:
        """bool [rows, positions], of those visible."""
        keys = self._index[layer] = _append(self._index[layer], index.keys[: self.rows])
        products = torch.einsum("qhd,kd->qhk", index.queries[: self.rows], keys).relu()
        worth = torch.einsum("qh,qhk->qk", index.weights[: self.rows], products)
        worth = worth.masked_fill(~visible, -torch.inf)
        best = worth.topk(min(index.top_k, len(keys)), dim=-1).indices
        return torch.zeros_like(visible).scatter(-1, best, True)


class DenseSequence:
    """One sequence run through a model without an engine."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._kv = DenseKv(model.config.num_layers)

    def extend(self, token_ids: Sequence[int]) -> Tensor:
        """Appends tokens; float32 logits [tokens, V] behind each of them."""
        start, self._kv.rows = self._kv.length, len(token_ids)
        ids = pad_rows(torch.tensor(token_ids))
        positions = pad_rows(torch.arange(start, start + len(token_ids)))
        hidden = self._model.forward(ids, positions, self._kv)
        return self._model.logits(hidden[: len(token_ids)])


def greedy_tokens(model: Model, prompt_ids: Sequence[int], count: int) -> list[int]:
    """The `count` likeliest next tokens, one after the other; end-of-sequence does not stop it."""
    sequence = DenseSequence(model)
    tokens: list[int] = []
    step = list(prompt_ids)
    for _ in range(count):
        step = [int(sequence.extend(step)[-1].argmax())]
        tokens += step
    return tokens


def _append(held: Tensor | None, rows: Tensor) -> Tensor:
    return rows.clone() if held is None else torch.cat([held, rows])


def _three_parts(q: Tensor, keys: Tensor, values: Tensor, brought: NsaRows, scale: float) -> Tensor:
    """NSA (arXiv 2502.11089, equations 5 to 11) of the last rows of a sequence, one after the other
    as the paper has it: q [R, Hq, D]; keys, values [T, Hkv, D] → [R, Hq, D].
    """
    size, group = brought.block_tokens, q.shape[1] // keys.shape[1]
    out = torch.zeros_like(q)
    for i, head in itertools.product(range(len(q)), range(keys.shape[1])):
        own, position = slice(head * group, (head + 1) * group), len(keys) - len(q) + i
        k, v = keys[: position + 1, head], values[: position + 1, head]
        behind = (position + 1) // size
        k_means, v_means = (
            x[: behind * size].view(behind, size, x.shape[-1]).mean(1) for x in (k, v)
        )
        shares = (q[i, own] @ k_means.t() * scale).softmax(-1)
        blocks = _best_blocks(shares.sum(0), position // size, brought.top_k)
        chosen = torch.isin(torch.arange(position + 1) // size, blocks)
        parts = [
            shares @ v_means,
            (q[i, own] @ k[chosen].t() * scale).softmax(-1) @ v[chosen],
        ]
        if brought.window:
            near = slice(-brought.window, None)
            parts.append((q[i, own] @ k[near].t() * scale).softmax(-1) @ v[near])
        gates = brought.gates[i, own].unbind(-1)
        out[i, own] = sum(
            (gate[:, None] * part for gate, part in zip(gates, parts, strict=False)),
            torch.zeros_like(q[i, own]),
        )
    return out


def _best_blocks(shares: Tensor, own: int, top_k: int) -> Tensor:
    """Numbers of the blocks that a row of block `own` reads token by token."""
    always = sorted({0, max(0, own - 1), own})
    others = [block for block in range(own) if block not in always]
    others.sort(key=lambda block: -float(shares[block]))
    return torch.tensor([*always, *others[: top_k - len(always)]])
