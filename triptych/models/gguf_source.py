"""Weights of a GGUF file, dequantised when they are read.

llama.cpp renames tensors, and changes some of them: query and key rows of Llamas are reordered for
its interleaved rotary embedding, and Gemma's norm weights carry their + 1. Both are undone here.
"""

from __future__ import annotations

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
from triptych.models.gguf_header import GgufHeader, GgufTensor

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

    def read(self, name: str) -> Tensor:
        """float32."""
        tensor = self._tensors[name]
        rows = self._stored_rows(tensor)
        if self._config.architecture == "llama" and ".q_proj." in name:
            rows = _half_split(rows, self._config.num_heads)
        if self._config.architecture == "llama" and ".k_proj." in name:
            rows = _half_split(rows, self._config.num_kv_heads)
        weight = self._dequantised(rows, tensor)
        if self._config.norm_offset and name.endswith("norm.weight"):
            return weight - self._config.norm_offset
        return weight

    def _stored_rows(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """[rows, bytes]; a vector has one element per row."""
        raw = np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.offset)
        return raw.reshape(tensor.shape[0], -1)

    def _dequantised(self, rows: NDArray[np.uint8], tensor: GgufTensor) -> Tensor:
        try:
            values = gguf.dequantize(rows, tensor.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self._path}: tensor {tensor.name!r}: quantisation {tensor.kind.name} "
                "is not supported"
            ) from error
        # A copy where dequantising was none: torch refuses read-only memory.
        return torch.from_numpy(np.require(values, np.float32, "W")).view(tensor.shape)


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
