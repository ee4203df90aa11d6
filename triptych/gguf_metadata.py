"""The key-value part of a GGUF file, read in milliseconds and without touching a tensor.

By hand, because `gguf.GGUFReader` makes several numpy views for every word of a vocabulary, which
takes seconds in every process. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md,
versions 2 and 3, little-endian.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs as Python values, arrays as lists.

    Raises ModelError when the file cannot be read, is no GGUF or is cut off.
    """
    with open_gguf(path) as cursor:
        return read_pairs(cursor)[1]


@contextlib.contextmanager
def open_gguf(path: Path) -> Iterator[GgufCursor]:
    """A cursor at the start of the file. A ValueError in the block becomes a ModelError."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield GgufCursor(data)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from error


def read_pairs(cursor: GgufCursor) -> tuple[int, dict[str, Any]]:
    """(number of tensors, metadata); the cursor is then at the first tensor's description."""
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
    return num_tensors, metadata


class GgufCursor:
    """Reads little-endian values one after the other. Raises ValueError at the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.num_bytes = len(data)
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
