"""Weights of a GGUF file: dequantised when they are read, or as the grids that they are stored on.

llama.cpp renames tensors, and changes some of them: query and key rows of Llamas are reordered for
its interleaved rotary embedding, and Gemma's norm weights carry their + 1. Both are undone here.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.config import ModelConfig
from triptych.models.gguf_blocks import read_affine, read_dense
from triptych.models.gguf_header import GgufHeader, GgufTensor
from triptych.models.storage import is_small
from triptych_kernels.quant import Affine

ROPE_FACTORS = "rope_freqs.weight"  # has no counterpart in Hugging Face's checkpoints

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


class GgufSource:
    """An open GGUF file. Raises ModelError naming the file and the tensor."""

    def __init__(self, path: Path, header: GgufHeader, config: ModelConfig) -> None:
        self._path = path
        self._config = config
        self._tensors = {
            _plain_name(tensor.name, config): tensor for tensor in header.tensors.values()
        }
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ModelError(f"{path}: {error}") from error

    @property
    def origin(self) -> str:
        return str(self._path)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    @property
    def small(self) -> bool:
        """Whether most weights of the layers are stored in about 5 bits or fewer."""
        return is_small(
            (_bits(tensor), math.prod(tensor.shape))
            for name, tensor in self._tensors.items()
            if ".layers." in name
        )

    def stored_bits(self, name: str) -> float:
        """Per weight, scales included."""
        return _bits(self._tensors[name])

    def read_affine(self, name: str) -> Affine | None:
        """A matrix as stored, in groups of 32; None for formats that are no such grids."""
        tensor = self._tensors[name]
        if len(tensor.shape) != 2:
            return None
        return read_affine(self._ordered_rows(name), tensor.kind)

    def read(self, name: str) -> Tensor:
        """float32."""
        weight = self._dequantised(self._ordered_rows(name), self._tensors[name])
        if self._config.norm_offset and name.endswith("norm.weight"):
            return weight - self._config.norm_offset
        return weight

    def _ordered_rows(self, name: str) -> NDArray[np.uint8]:
        """[rows, bytes] as stored, in Hugging Face's order; a vector has one element per row."""
        tensor = self._tensors[name]
        if not tensor.shape[0] or tensor.num_bytes % tensor.shape[0]:
            raise ModelError(
                f"{self._path}: tensor {tensor.name!r}: a {tensor.kind.name} of shape "
                f"{list(tensor.shape)} is not supported"
            )
        raw = np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.offset)
        rows = raw.reshape(tensor.shape[0], -1)
        if self._config.architecture == "llama" and ".q_proj." in name:
            return _half_split(rows, self._config.num_heads)
        if self._config.architecture == "llama" and ".k_proj." in name:
            return _half_split(rows, self._config.num_kv_heads)
        return rows

    def _dequantised(self, rows: NDArray[np.uint8], tensor: GgufTensor) -> Tensor:
        if len(tensor.shape) == 2:
            dense = read_dense(rows, tensor.kind)
            if dense is not None:
                return dense
        try:
            values = gguf.dequantize(rows, tensor.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self._path}: tensor {tensor.name!r}: quantisation {tensor.kind.name} "
                "is not supported"
            ) from error
        # A copy where dequantising was none: torch refuses read-only memory.
        return torch.from_numpy(np.require(values, np.float32, "W")).view(tensor.shape)


def _bits(tensor: GgufTensor) -> float:
    """Per weight, scales included."""
    return 8 * tensor.num_bytes / max(1, math.prod(tensor.shape))


def _half_split(rows: NDArray[np.uint8], heads: int) -> NDArray[np.uint8]:
    """Rows of each head from llama.cpp's order, pairs side by side, to first half, second half."""
    if len(rows) % (2 * heads):
        return rows  # the reader refuses this shape
    half = len(rows) // heads // 2
    return rows.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _plain_name(name: str, config: ModelConfig) -> str:
    """Hugging Face's name; unknown names stay as they are."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{suffix}"
    prefix, _, rest = stem.partition(".")
    layer, _, part = rest.partition(".")
    if prefix == "blk" and part == "ffn_norm":
        before_ffn = "pre_feedforward" if config.post_norms else "post_attention"
        return f"model.layers.{layer}.{before_ffn}_layernorm.{suffix}"
    if prefix == "blk" and part in _LAYER:
        return f"model.layers.{layer}.{_LAYER[part]}.{suffix}"
    return name
