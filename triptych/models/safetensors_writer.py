"""Writes a checkpoint's tensors one by one, as one safetensors file or as shards with an index.

The format (huggingface.co/docs/safetensors): the header's length, the header as JSON with the place
of every tensor, then their bytes. All shapes are known before the first tensor is, so nothing has
to wait in memory.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from triptych.models.sources import Progress

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 64  # of a file's first tensor
_CHUNK_BYTES = 64 << 20  # converted and written at once

Shape = tuple[int, ...]


class SafetensorsWriter:
    """Takes exactly the tensors of `shapes`, in their order, and stores them all as `dtype`.

    A shard has at most `shard_bytes` of tensors, or one tensor that is larger. `progress` counts
    bytes of tensors. Raises OSError. Use it as a context manager; files are whole only after
    `finish`.
    """

    def __init__(
        self,
        directory: Path,
        shapes: Mapping[str, Shape],
        dtype: torch.dtype,
        *,
        shard_bytes: int = 5 * 10**9,
        progress: Progress | None = None,
    ) -> None:
        self._directory = directory
        self._shapes = dict(shapes)
        self._dtype = dtype
        self._progress = progress
        self._shards = _divide(self._bytes_of_each(), shard_bytes)
        self._waiting = [name for shard in self._shards for name in shard]
        self._file: BinaryIO | None = None
        self._done = 0
        self.total_bytes = sum(self._bytes_of_each().values())

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor; any floating dtype."""
        expected = self._waiting.pop(0)
        assert name == expected, f"{name} comes before {expected}"
        assert tuple(tensor.shape) == self._shapes[name], f"{name}: {list(tensor.shape)}"
        if self._file is None or any(name == shard[0] for shard in self._shards):
            self._open_shard(name)
        assert self._file is not None
        values = tensor.contiguous().view(-1)
        step = _CHUNK_BYTES // self._dtype.itemsize
        for begin in range(0, len(values), step):
            raw = values[begin : begin + step].to(self._dtype).view(torch.uint8).numpy()
            self._file.write(raw.data)
            self._done += raw.nbytes
            if self._progress is not None:
                self._progress(self._done, self.total_bytes)

    def finish(self) -> None:
        """After the last tensor: everything is on the disk, with an index if there are shards."""
        assert not self._waiting, f"{self._waiting[0]} was not written"
        self._close_shard()
        if len(self._shards) > 1:
            index = {
                "metadata": {"total_size": self.total_bytes},
                "weight_map": {name: self._name(at) for name, at in self._places().items()},
            }
            path = self._directory / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n")

    def _bytes_of_each(self) -> dict[str, int]:
        size = self._dtype.itemsize
        return {name: size * math.prod(shape) for name, shape in self._shapes.items()}

    def _places(self) -> dict[str, int]:
        return {name: at for at, shard in enumerate(self._shards) for name in shard}

    def _name(self, at: int) -> str:
        if len(self._shards) == 1:
            return "model.safetensors"
        return f"model-{at + 1:05}-of-{len(self._shards):05}.safetensors"

    def _open_shard(self, first: str) -> None:
        self._close_shard()
        at = self._places()[first]
        self._file = (self._directory / self._name(at)).open("wb")
        self._file.write(self._header(self._shards[at]))

    def _close_shard(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _header(self, names: list[str]) -> bytes:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end, sizes = 0, self._bytes_of_each()
        for name in names:
            begin, end = end, end + sizes[name]
            shape = list(self._shapes[name])
            header[name] = {
                "dtype": _NAMES[self._dtype],
                "shape": shape,
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def _divide(sizes: Mapping[str, int], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    used = 0
    for name, size in sizes.items():
        if not shards or used + size > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
