"""The header of a GGUF file: metadata and where each tensor lies. Knows the format, not models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from triptych.gguf_metadata import GgufCursor, open_gguf, read_pairs


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in the file."""

    name: str
    shape: tuple[int, ...]  # outermost first, as torch counts; the file has it reversed
    kind: GGMLQuantizationType
    offset: int  # bytes from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    metadata: dict[str, Any]  # scalars, str, and lists of them
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Raises ModelError naming the file when it is no GGUF file, damaged or cut short."""
    with open_gguf(path) as cursor:
        return _parse(cursor)


def _parse(cursor: GgufCursor) -> GgufHeader:
    num_tensors, metadata = read_pairs(cursor)
    found = [_parse_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {name: _place(name, shape, kind, start + at) for name, shape, kind, at in found}
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=0)
    if end > cursor.num_bytes:
        raise ValueError(f"it has {cursor.num_bytes} bytes, its tensors need {end}")
    return GgufHeader(metadata, tensors)


def _parse_tensor(cursor: GgufCursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    (dims,) = cursor.scalars("I")
    shape = cursor.scalars("Q", dims)[::-1]
    return name, shape, cursor.scalars("I")[0], cursor.scalars("Q")[0]


def _place(name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
    quantisation = GGMLQuantizationType(kind)
    block_size, block_bytes = GGML_QUANT_SIZES[quantisation]
    elements = math.prod(shape)
    if not shape or shape[-1] % block_size:
        raise ValueError(f"rows of tensor {name!r} are not whole {quantisation.name} blocks")
    return GgufTensor(name, shape, quantisation, offset, elements // block_size * block_bytes)
