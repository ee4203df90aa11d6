"""A directory of safetensors that holds weights of FP8 (DeepSeek-V3) or MXFP4 (gpt-oss), read as if
it held the numbers that they stand for, under the names that they have without packing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.packed_tensors import FP8_BLOCK, MXFP4_GROUP, from_fp8, from_mxfp4
from triptych.models.sources import StackSource

_SCALE = "_scale_inv"  # behind the name of an FP8 matrix
_BLOCKS, _SCALES = "_blocks", "_scales"  # behind the name of a stack of MXFP4 matrices


class RawSource(StackSource, Protocol):
    """A checkpoint that can also be read as it is stored, in any dtype."""

    def raw(self, name: str, entry: int | None = None) -> Tensor:
        """The tensor, or one entry of it, of which nothing else is read."""


class PackedSource:
    """A StackSource. Raises ModelError naming the tensor whose parts do not fit each other."""

    def __init__(self, source: RawSource) -> None:
        self._source = source
        stored = set(source.names())
        self._fp8 = {name.removesuffix(_SCALE) for name in stored if name.endswith(_SCALE)}
        blocks = {name.removesuffix(_BLOCKS) for name in stored if name.endswith(_BLOCKS)}
        self._mxfp4 = {name for name in blocks if name + _SCALES in stored}
        parts = {name + _SCALE for name in self._fp8}
        parts |= {name + part for name in self._mxfp4 for part in (_BLOCKS, _SCALES)}
        self._names = (stored - parts) | self._mxfp4

    @property
    def origin(self) -> str:
        return self._source.origin

    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._mxfp4:
            return self._source.shape(name)
        shape = self._source.shape(name + _BLOCKS)
        if len(shape) != 4:
            raise ModelError(f"{self.origin}: tensor {name + _BLOCKS!r} has shape {list(shape)}")
        return shape[0], shape[2] * MXFP4_GROUP, shape[1]

    def read(self, name: str) -> Tensor:
        if name in self._mxfp4:
            entries = range(self.shape(name)[0])
            return torch.stack([self.read_entry(name, entry) for entry in entries])
        if name not in self._fp8:
            return self._source.read(name)
        weight, scale = self._source.raw(name), self._source.raw(name + _SCALE)
        blocks = tuple(-(-size // FP8_BLOCK) for size in weight.shape)
        if weight.dtype != torch.float8_e4m3fn or tuple(scale.shape) != blocks:
            raise ModelError(
                f"{self.origin}: tensor {name!r} is no float8_e4m3fn with a scale for each "
                f"{FP8_BLOCK} × {FP8_BLOCK} weights; other kinds of FP8 are not supported"
            )
        return from_fp8(weight, scale)

    def read_entry(self, name: str, entry: int) -> Tensor:
        """Of MXFP4 [K, N], a view of what is stored as [N, K]."""
        if name not in self._mxfp4:
            return self._source.read_entry(name, entry)
        blocks, scales = (self._source.raw(name + part, entry) for part in (_BLOCKS, _SCALES))
        if blocks.dtype != torch.uint8 or blocks.shape[:-1] != scales.shape:
            raise ModelError(f"{self.origin}: tensor {name!r}: blocks and scales do not fit")
        return from_mxfp4(blocks, scales).t()
