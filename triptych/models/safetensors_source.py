"""Weights of a Hugging Face directory: one safetensors file, or shards with an index.

Files are memory-mapped: a tensor's bytes are read when it is used, and pages are shared between
processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from triptych.errors import ModelError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Multimodal checkpoints keep the text model under one of these, by the writer's version.
_TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


def text_name(stored: str) -> str:
    """What the text model of a multimodal checkpoint calls a tensor by itself."""
    for prefix, plain in _TEXT_PREFIXES.items():
        if stored.startswith(prefix):
            return plain + stored.removeprefix(prefix)
    return stored


class SafetensorsSource:
    """A directory of safetensors. Raises ModelError naming the damaged or missing file."""

    def __init__(self, directory: Path, names: Callable[[str], str] = text_name) -> None:
        """`names`: the name that a tensor goes by here, given the one that it is stored under."""
        self._directory = directory
        self._files = {path: _open(path) for path in _weight_files(directory)}
        self._places = {
            names(stored): (stored, path)
            for path, file in self._files.items()
            for stored in file.keys()  # noqa: SIM118 (not a mapping)
        }

    @property
    def origin(self) -> str:
        return str(self._directory)

    def names(self) -> Collection[str]:
        return self._places.keys()

    def read(self, name: str) -> Tensor:
        return self._unpacked(name, self.raw(name))

    def shape(self, name: str) -> tuple[int, ...]:
        stored, path = self._places[name]
        return tuple(self._files[path].get_slice(stored).get_shape())

    def read_entry(self, name: str, entry: int) -> Tensor:
        return self._unpacked(name, self.raw(name, entry))

    def raw(self, name: str, entry: int | None = None) -> Tensor:
        """The tensor, or one entry of it, of which nothing else is read, in any dtype."""
        stored, path = self._places[name]
        file = self._files[path]
        try:
            whole = entry is None
            tensor: Tensor = file.get_tensor(stored) if whole else file.get_slice(stored)[entry]
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: tensor {name!r}: {error}") from error
        return tensor

    def _unpacked(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype not in _DTYPES:
            file, kind = self._places[name][1], str(tensor.dtype).removeprefix("torch.")
            raise ModelError(
                f"{file}: tensor {name!r} is {kind}: quantised safetensors are not supported, "
                "but for FP8 in blocks and MXFP4"
            )
        return tensor


def _weight_files(directory: Path) -> list[Path]:
    index = directory / _INDEX
    if not index.is_file():
        single = directory / _SINGLE
        if not single.is_file():
            raise ModelError(
                f"{directory}: neither {_SINGLE} nor {_INDEX} is there (.bin files are not read)"
            )
        return [single]
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(weight_map.values()))
        return [directory / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not a safetensors index: {error!r}") from error


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        # Said by safetensors of files, too, that this user may not read.
        why = f"user {os.getuid()} may not read it" if path.exists() else "file is missing"
        raise ModelError(f"{path}: {why}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path}: not a complete safetensors file: {error}") from error
