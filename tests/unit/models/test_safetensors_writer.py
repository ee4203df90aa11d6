"""Files of the writer are what the safetensors library reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triptych.models.safetensors_source import SafetensorsSource
from triptych.models.safetensors_writer import SafetensorsWriter, Shape

SHAPES: dict[str, Shape] = {"a": (3, 5), "b": (7,), "empty": (0, 4), "c": (2, 3, 4), "d": (1,)}


def tensors() -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_written_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    seen = []
    with SafetensorsWriter(
        tmp_path, SHAPES, dtype, progress=lambda *done: seen.append(done)
    ) as writer:
        for name, tensor in tensors().items():
            writer.write(name, tensor)
        writer.finish()
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == SHAPES.keys()
    for name, tensor in tensors().items():
        assert torch.equal(found[name], tensor.to(dtype))
    assert seen[-1] == (writer.total_bytes, writer.total_bytes)
    assert writer.total_bytes == 47 * dtype.itemsize


def test_shards_are_no_larger_than_asked_unless_a_tensor_is(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path, SHAPES, torch.float32, shard_bytes=64) as writer:
        for name, tensor in tensors().items():
            writer.write(name, tensor.half())
        writer.finish()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 188}
    parts = [f"model-{at:05}-of-00004.safetensors" for at in range(1, 5)]
    assert list(index["weight_map"].values()) == [*parts[:2], parts[1], parts[2], parts[3]]
    source = SafetensorsSource(tmp_path)
    for name, tensor in tensors().items():
        assert torch.equal(source.read(name), tensor.half().float())


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4).T
    with SafetensorsWriter(tmp_path, {"m": (4, 3)}, torch.float32) as writer:
        writer.write("m", matrix)
        writer.finish()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["m"], matrix)
