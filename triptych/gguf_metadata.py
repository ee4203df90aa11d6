"""The key-value part of a GGUF file, read in milliseconds and without touching a tensor.

(The `gguf` package makes arrays of every word of a vocabulary: seconds, in every process.)
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from triptych.errors import ModelError

_STRING, _ARRAY = 8, 9
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


def read_metadata(path: Path) -> dict[str, Any]:
    """All key-value pairs as Python values, arrays as lists.

    Raises ModelError when the file cannot be read, is no GGUF or is cut off.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read_pairs(data, path)
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from error


def _read_pairs(data: mmap.mmap, path: Path) -> dict[str, Any]:
    magic, version, _, num_pairs = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ModelError(f"{path}: not a GGUF file of version 2 or 3 (little-endian)")
    pairs, at = {}, struct.calcsize("<4sIQQ")
    for _ in range(num_pairs):
        key, at = _read_string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        pairs[key], at = _read_value(data, at + 4, kind)
    return pairs


def _read_value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _read_string(data, at)
    if kind == _ARRAY:
        return _read_array(data, at)
    layout = "<" + _SCALARS[kind]
    return struct.unpack_from(layout, data, at)[0], at + struct.calcsize(layout)


def _read_array(data: mmap.mmap, at: int) -> tuple[list[Any], int]:
    kind, length = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind in _SCALARS:
        layout = f"<{length}{_SCALARS[kind]}"
        return list(struct.unpack_from(layout, data, at)), at + struct.calcsize(layout)
    values = []
    for _ in range(length):
        value, at = _read_value(data, at, kind)
        values.append(value)
    return values, at


def _read_string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    start, end = at + 8, at + 8 + length
    if end > len(data):
        raise ValueError("it ends inside its metadata")
    return data[start:end].decode(errors="replace"), end
