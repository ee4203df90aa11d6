"""The truth: every op in plain torch, with bits that do not depend on the batch.

Two rules make a row's float32 result a function of that row alone, whatever the number of rows,
their order and the number of threads, with a stock BLAS:

* rows are padded to a multiple of `ROW_TILE` (below 16 rows BLAS libraries switch to other
  kernels);
* K is walked in fixed chunks of `K_CHUNK` (on a longer K they choose blockings that depend on M).

Attention follows the same idea: keys are visited in tiles of `KV_TILE` positions aligned to
position 0 and the partial results are merged in position order, so a prompt chunk, a cached prefix
and a single decoded row all produce the same bits. Masked positions contribute exact zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROW_TILE = 16
K_CHUNK = 512
KV_TILE = 128
SWIGLU_LIMIT, SWIGLU_ALPHA = 7.0, 1.702  # of gpt-oss
QUERY_ROWS = 128
ROWS_AT_ONCE = 512  # query rows × KV tiles of one matmul: bounds memory, never changes bits


def pad_rows(x: Tensor) -> Tensor:
    """x [M, …] with zero rows appended up to a multiple of ROW_TILE."""
    missing = -x.shape[0] % ROW_TILE
    return x if missing == 0 else torch.cat([x, x.new_zeros(missing, *x.shape[1:])])


class Linear:
    """y = x Wᵀ + b with a fixed order of accumulation over K.

    weight [N, K] is packed at construction into [K_CHUNK, N] pieces (the caller's tensor is not
    kept).
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self._chunks = [chunk.t().contiguous() for chunk in torch.split(weight, K_CHUNK, dim=1)]
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """x [M, K] → [M, N], same dtype."""
        rows = x.shape[0]
        x = pad_rows(x)
        start = self._chunks[0].shape[0]
        y = x[:, :start] @ self._chunks[0]
        for chunk in self._chunks[1:]:
            end = start + chunk.shape[0]
            y.addmm_(x[:, start:end], chunk)
            start = end
        if self._bias is not None:
            y += self._bias
        return y[:rows]

    @property
    def nbytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, weight_offset: float = 0.0) -> Tensor:
    """x [..., H] × rsqrt(mean(x²) + eps) × (weight + weight_offset), in float32, back in x.dtype.

    With an offset (Gemma) the weight is applied before the cast, without one (Llama) after it.
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight_offset:
        return (normed * (weight.float() + weight_offset)).to(x.dtype)
    return normed.to(x.dtype) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x − mean) × rsqrt(variance + eps) × weight + bias over the last dimension, in float32."""
    centred = x.float() - x.float().mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return (normed * weight + bias).to(x.dtype)


def rotary_cos_sin(
    positions: Tensor, inv_freq: Tensor, attention_scaling: float = 1.0
) -> tuple[Tensor, Tensor]:
    """positions [M] int64, inv_freq [D/2] float32 → cos, sin, each [M, D/2] float32."""
    angles = positions.float()[:, None] * inv_freq[None, :]
    return angles.cos() * attention_scaling, angles.sin() * attention_scaling


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [M, heads, D] by halves (GPT-NeoX); cos, sin [M, R/2] are cast to x.dtype.

    Where R < D, the first R numbers of a head are rotated.
    """
    cos, sin = cos.to(x.dtype)[:, None, :], sin.to(x.dtype)[:, None, :]
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU's gate: silu(gate) × up, elementwise.

    Composed of ops whose bits do not depend on where an element lies: `F.silu` and `F.gelu` treat
    the ends of each thread's share with other instructions than its middle.
    """
    wide = gate.float()
    return (wide / (1.0 + torch.exp(-wide))).to(gate.dtype) * up


def gelu_tanh_mul(gate: Tensor, up: Tensor) -> Tensor:
    """GeGLU's gate with the tanh approximation, elementwise. Composed for the same reason."""
    wide = gate.float()
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide * wide * wide)
    return (0.5 * wide * (1.0 + torch.tanh(inner))).to(gate.dtype) * up


def clamped_swiglu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gpt-oss's gate, elementwise: (up + 1) × gate × sigmoid(1.702 gate), where gate ≤ 7, |up| ≤ 7.
    Composed for the same reason.
    """
    wide = gate.float().clamp(max=SWIGLU_LIMIT)
    opened = wide / (1.0 + torch.exp(-SWIGLU_ALPHA * wide))
    return opened.to(gate.dtype) * (up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1.0)


def paged_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    start: int,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    chosen: Tensor | None = None,
) -> Tensor:
    """Causal attention of consecutive rows of one sequence over its paged KV.

    q [R, Hq, D], row r at position start + r; keys, values [num_blocks, block_tokens, Hkv, D]
    (strided views of one layer of the pool); blocks [n] int64: the sequence's blocks in order,
    holding at least start + R positions. A window of w lets position p see (p − w, p]. sinks [Hq]
    float32: a logit of each head that takes its share of the softmax and adds nothing (gpt-oss; the
    idea is StreamingLLM's, arXiv 2309.17453). chosen bool [R, start + R]: the positions that a row
    may see, or [R, Hkv, start + R] of each KV head; without it all. Returns [R, Hq, D].

    Long chunks are cut: a piece sees only tiles up to its own end, and its scores stay in cache.
    Every tile is reduced alone (max, sum of exponentials, weighted values) and rescaled to the
    row's maximum, which is exact and order-free; the sums over tiles then run in position order.
    """
    rows, q_heads, dim = q.shape
    if rows > QUERY_ROWS:
        pieces = [
            paged_attention(
                piece,
                keys,
                values,
                blocks,
                start + number * QUERY_ROWS,
                scale=scale,
                window=window,
                softcap=softcap,
                sinks=sinks,
                chosen=None if chosen is None else chosen[number * QUERY_ROWS :],
            )
            for number, piece in enumerate(torch.split(q, QUERY_ROWS))
        ]
        return torch.cat(pieces)
    kv_heads = keys.shape[2]
    group = q_heads // kv_heads
    end = start + rows
    first_tile = 0 if window is None else max(0, start - window + 1) // KV_TILE
    last_tile = -(-end // KV_TILE)

    # [Hkv, 1, group × padded rows, D]: one matmul serves all query heads that share a KV head
    padded = pad_rows(q)
    packed = padded.reshape(-1, kv_heads, group, dim).permute(1, 2, 0, 3)
    packed = packed.reshape(kv_heads, 1, -1, dim) * scale
    row_position = torch.arange(start, start + padded.shape[0]).clamp_(max=end - 1).repeat(group)

    parts = []
    at_once = max(1, ROWS_AT_ONCE // padded.shape[0])
    for tile in range(first_tile, last_tile, at_once):
        begin, count = tile * KV_TILE, min(at_once, last_tile - tile)
        k = gather_tiles(keys, blocks, begin, count, end).to(q.dtype)
        scores = torch.matmul(packed, k.transpose(2, 3)).float()  # [Hkv, tiles, G·R, KV_TILE]
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        position = torch.arange(begin, begin + count * KV_TILE).view(count, 1, KV_TILE)
        if begin + count * KV_TILE > start + 1 or window is not None:
            masked = position > row_position[:, None]
            if window is not None:
                masked |= position <= row_position[:, None] - window
            scores.masked_fill_(masked, -torch.inf)
        if chosen is not None:
            left_out = ~_chosen_tiles(chosen, padded.shape[0], begin, count)
            scores.masked_fill_(left_out.repeat(1, 1, group, 1), -torch.inf)
        parts.append(_reduce_tiles(scores, values, blocks, begin, end, q.dtype))

    best, total, out = (torch.cat(pieces, dim=1) for pieces in zip(*parts, strict=True))
    sink = None
    if sinks is not None:  # [Hkv, G·R, 1]
        sink = sinks.view(kv_heads, group, 1).repeat_interleave(padded.shape[0], dim=1)
    out = _merge_tiles(best, total, out, sink)
    out = out.reshape(kv_heads, group, -1, dim).permute(2, 0, 1, 3).reshape(-1, q_heads, dim)
    return out[:rows].to(q.dtype)


def page_scores(
    q: Tensor,
    keys: Tensor,
    blocks: Tensor,
    start: int,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """How much attention consecutive rows pay to each page: float32 [Hkv, pages].

    q [R, Hq, D], row r at position start + r; keys [num_blocks, block_tokens, Hkv, D]; blocks [n]
    int64. A page is a block by its place; all that hold positions < start + R are scored. The
    softmax of a row over the positions that it sees is summed page by page, then averaged over the
    rows and the query heads of a KV head (PillarAttn of SparseSpec, arXiv 2512.01278). What falls
    on a sink, float32 [Hq], falls on no page.
    """
    rows, _, dim = q.shape
    page_tokens, kv_heads = keys.shape[1:3]
    end = start + rows
    pages = -(-end // page_tokens)
    seen = keys[blocks[:pages]].flatten(0, 1)[:end].to(q.dtype)  # [end, Hkv, D]
    packed = q.view(rows, kv_heads, -1, dim)
    scores = torch.einsum("rhgd,nhd->hgrn", packed, seen).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    ahead = torch.arange(end) > torch.arange(start, end)[:, None]
    scores = scores.masked_fill(ahead, -torch.inf)
    if sinks is not None:
        sink = sinks.view(kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    shares = scores.softmax(-1)[..., :end].mean((1, 2))  # [Hkv, end]
    shares = torch.nn.functional.pad(shares, (0, pages * page_tokens - end))
    return shares.view(kv_heads, pages, page_tokens).sum(-1)


def _reduce_tiles(
    scores: Tensor, values: Tensor, blocks: Tensor, begin: int, end: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Each tile alone: row maximum, sum of exponentials, weighted values. scores [Hkv, tiles, G·R,
    KV_TILE].
    """
    v = gather_tiles(values, blocks, begin, scores.shape[1], end).to(dtype)
    best = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    weights = torch.exp(scores - best)
    return best, weights.sum(-1, keepdim=True), torch.matmul(weights.to(v.dtype), v).float()


def _merge_tiles(best: Tensor, total: Tensor, out: Tensor, sink: Tensor | None) -> Tensor:
    """Tiles [Hkv, tiles, G·R, 1 | D] into [Hkv, G·R, D]; sums run in position order, whatever the
    count. A sink [Hkv, G·R, 1] comes last.
    """
    best_of_all = best.amax(1, keepdim=True)
    factor = torch.exp(best - best_of_all)
    total, out = total * factor, out * factor
    all_total, all_out = torch.zeros_like(total[:, 0]), torch.zeros_like(out[:, 0])
    for tile in range(best.shape[1]):
        all_total += total[:, tile]
        all_out += out[:, tile]
    if sink is not None:
        best = best_of_all[:, 0]
        top = torch.maximum(best, sink)
        kept = torch.exp(best - top)
        all_total, all_out = all_total * kept + torch.exp(sink - top), all_out * kept
    return all_out / all_total


def _chosen_tiles(chosen: Tensor, rows: int, begin: int, count: int) -> Tensor:
    """bool [1 | Hkv, count, rows, KV_TILE]; rows of padding have chosen nothing."""
    width = count * KV_TILE
    part = (chosen if chosen.dim() == 3 else chosen[:, None])[:rows, :, begin : begin + width]
    missing = (0, width - part.shape[2], 0, 0, 0, rows - part.shape[0])
    part = torch.nn.functional.pad(part, missing)
    return part.view(rows, -1, count, KV_TILE).permute(1, 2, 0, 3)


def gather_tiles(pool: Tensor, blocks: Tensor, begin: int, count: int, end: int) -> Tensor:
    """Positions [begin, begin + count × KV_TILE) as [Hkv, count, KV_TILE, D]; zeros from `end` on.

    What lies behind `end` in the last block is another owner's leftover and must not enter as NaN ×
    0.
    """
    block_tokens = pool.shape[1]
    stop = min(begin + count * KV_TILE, end)
    first_block, last_block = begin // block_tokens, -(-stop // block_tokens)
    rows = pool[blocks[first_block:last_block]].flatten(0, 1)
    skipped = first_block * block_tokens
    rows = rows[begin - skipped : stop - skipped]
    missing = count * KV_TILE - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return rows.view(count, KV_TILE, *rows.shape[1:]).permute(2, 0, 1, 3).contiguous()


def append_kv(pool: Tensor, rows: Tensor, slots: Tensor) -> None:
    """Writes rows [M, Hkv, D] of one layer's keys or values into a pool view.

    pool [num_blocks, block_tokens, Hkv, D] (strided view); slots [M] int64 = block × block_tokens +
    offset.
    """
    block_tokens = pool.shape[1]
    pool[slots // block_tokens, slots % block_tokens] = rows.to(pool.dtype)
