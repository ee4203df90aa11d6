"""DeepSeek-V3.2's sparse attention (DSA, arXiv 2512.02556): a small scorer of its own, the
"lightning indexer", chooses the tokens that a row attends to, in each layer anew.

It has one key a token for all its heads, beside the layer's KV. Its rotary numbers stand in halves,
whatever the attention's do. The published kernels turn queries and keys by a Hadamard matrix, which
changes no product, and round them to FP8; here they are as exact as the KV.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from triptych.models.config import ModelConfig
from triptych.models.latent import LatentHeads
from triptych.models.layers import Heads
from triptych.models.seams import IndexRows
from triptych.models.weights import WeightReader
from triptych_kernels import apply_rotary, layer_norm
from triptych_kernels.packer import LinearLike


@dataclass(frozen=True, slots=True)
class Indexer:
    """See TokenIndex. There are J heads, D wide."""

    heads: LatentHeads  # of the same layer: queries are made of the same latents
    query: LinearLike  # [J·D, query rank]
    key: LinearLike  # [D, hidden]
    key_norm: Tensor  # float32 [D], of a layer norm
    key_norm_bias: Tensor
    weights: LinearLike  # [J, hidden] float32
    top_k: int
    eps: float = 1e-6  # of the keys' norm, whatever the configuration says

    @property
    def head_dim(self) -> int:
        return len(self.key_norm)

    @property
    def num_heads(self) -> int:
        return self.weights.out_features

    @property
    def scale(self) -> float:
        """Of scores: of a head's product, and of the sum over heads."""
        return float((self.head_dim * self.num_heads) ** -0.5)

    def __call__(self, rows: Tensor, cos: Tensor, sin: Tensor, /) -> IndexRows:
        queries = self.query(self.heads.query_latents(rows)).view(len(rows), self.num_heads, -1)
        keys = layer_norm(self.key(rows), self.key_norm, self.key_norm_bias, self.eps)
        return IndexRows(
            queries=apply_rotary(queries, cos, sin),
            weights=self.weights(rows) * self.scale,
            keys=apply_rotary(keys[:, None], cos, sin)[:, 0],
            top_k=self.top_k,
        )


def read_index(
    reader: WeightReader, config: ModelConfig, heads: Heads, prefix: str
) -> Indexer | None:
    """None for a model without; `prefix` of the layer's attention. Raises ModelError."""
    index, latent = config.index, config.latent
    if index is None:
        return None
    assert latent is not None and latent.query_rank is not None and isinstance(heads, LatentHeads)
    dim, name = index.head_dim, f"{prefix}.indexer"
    return Indexer(
        heads,
        query=reader.linear(
            [f"{name}.wq_b"], latent.query_rank, [index.num_heads * dim], bias=False
        ),
        key=reader.linear([f"{name}.wk"], config.hidden_size, [dim], bias=False),
        key_norm=reader.tensor(f"{name}.k_norm.weight", dim),
        key_norm_bias=reader.tensor(f"{name}.k_norm.bias", dim),
        weights=reader.linear(
            [f"{name}.weights_proj"], config.hidden_size, [index.num_heads], bias=False, exact=True
        ),
        top_k=index.top_k,
    )
