"""The header of a GGUF file: metadata and where each tensor lies. Knows the format, not models.

Read by hand because `gguf.GGUFReader` makes several numpy views for every string of the vocabulary,
which takes seconds. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from triptych.errors import ModelError

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


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
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data), len(data))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from error


class _Cursor:
    """Reads little-endian values one after the other. Raises ValueError at the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.offset = 0

    def scalars(self, code: str, count: int = 1) -> tuple[Any, ...]:
        if count * struct.calcsize(code) > len(self._data) - self.offset:
            raise ValueError(f"it ends within {count} values at byte {self.offset}")
        layout = f"<{count}{code}"
        values = struct.unpack_from(layout, self._data, self.offset)
        self.offset += struct.calcsize(layout)
        return values

    def string(self) -> str:
        start = self.offset + _LENGTH.size
        if start > len(self._data):
            raise ValueError(f"it ends within a string at byte {self.offset}")
        self.offset = start + _LENGTH.unpack_from(self._data, self.offset)[0]
        if self.offset > len(self._data):
            raise ValueError(f"it ends within a string at byte {start}")
        return self._data[start : self.offset].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind])[0]
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind} before byte {self.offset}")
        (item,), (count,) = self.scalars("I"), self.scalars("Q")
        if item in _SCALARS:
            return list(self.scalars(_SCALARS[item], count))
        if item != _STRING:
            raise ValueError(f"unknown array type {item} before byte {self.offset}")
        return [self.string() for _ in range(count)]


def _parse(cursor: _Cursor, file_bytes: int) -> GgufHeader:
    magic, (version,) = bytes(cursor.scalars("B", 4)), cursor.scalars("I")
    if magic != b"GGUF":
        raise ValueError("the magic number is wrong")
    if version not in (2, 3):
        raise ValueError(f"version {version} is not supported (or the file is big-endian)")
    num_tensors, num_values = cursor.scalars("Q", 2)
    metadata = {}
    for _ in range(num_values):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalars("I")[0])
    found = [_parse_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-cursor.offset // alignment) * alignment
    tensors = {name: _place(name, shape, kind, start + at) for name, shape, kind, at in found}
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors.values()), default=0)
    if end > file_bytes:
        raise ValueError(f"it has {file_bytes} bytes, its tensors need {end}")
    return GgufHeader(metadata, tensors)


def _parse_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
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
