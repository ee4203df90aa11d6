"""Units read one by one: the same as the whole model has, and no byte of anybody else's."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.checkpoint import load_config
from triptych.models.layers import LocalExperts
from triptych.models.load import load_model
from triptych.models.safetensors_source import SafetensorsSource
from triptych.models.sources import CheckedSource
from triptych.models.storage import WeightDtype
from triptych.models.tensor_source import TensorSource
from triptych.models.units import UnitReader, num_units, open_units
from triptych.models.weights import Part, WeightReader
from triptych.testing.checkpoints import MIXTURES, edit_config, tiny_checkpoint, tiny_llama
from triptych.testing.gguf_files import write_gguf
from triptych_kernels.packer import ReferencePacker

DTYPES: tuple[WeightDtype, ...] = ("float32", "bfloat16", "int8", "int4")
HIDDEN = 64
ROWS = torch.randn(16, HIDDEN, generator=torch.Generator().manual_seed(3))


class CountingSource:
    """A directory of safetensors that remembers what was read of it."""

    def __init__(self, directory: Path) -> None:
        self._source = SafetensorsSource(directory)
        self.origin = str(directory)
        self.reads: list[tuple[str, int | None]] = []
        self.num_bytes = 0

    def names(self) -> Collection[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str) -> Tensor:
        return self._counted(name, None, self._source.read(name))

    def read_entry(self, name: str, entry: int) -> Tensor:
        return self._counted(name, entry, self._source.read_entry(name, entry))

    def _counted(self, name: str, entry: int | None, tensor: Tensor) -> Tensor:
        self.reads.append((name, entry))
        self.num_bytes += tensor.nbytes
        return tensor


def units_of(path: Path, dtype: WeightDtype = "float32") -> UnitReader:
    return open_units(path, dtype=dtype, group=32, packer=ReferencePacker())


def edit_weights(directory: Path, keep: Collection[str]) -> None:
    """Only tensors whose names contain one of `keep` stay."""
    file = directory / "model.safetensors"
    weights = {n: w for n, w in load_file(file).items() if any(part in n for part in keep)}
    save_file(weights, file, metadata={"format": "pt"})


def resident_bytes(file: Path) -> int:
    """What this process has in memory of a file that it maps."""
    mapped, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            mapped = line.endswith(str(file))
        elif mapped and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


@pytest.mark.parametrize("family", MIXTURES)
def test_only_the_wanted_expert_is_read(family: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, family)
    config = load_config(tmp_path)
    source = CountingSource(tmp_path)
    reader = WeightReader(CheckedSource(source), "float32", 32, ReferencePacker())
    UnitReader(config, reader).read(2, 5)
    assert config.moe is not None
    size, hidden_size = config.moe.expert_size, config.hidden_size
    biases = 2 * size + hidden_size if config.moe.expert_bias else 0
    assert source.num_bytes == (3 * size * hidden_size + biases) * 4
    for name, entry in source.reads:
        assert name.startswith("model.layers.2.")
        assert entry == 5 or (entry is None and ".experts.5." in name)


def test_of_a_stack_only_the_pages_of_one_expert_come_into_memory(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"stack": torch.ones(64, 256, 256)}, file)
    source = SafetensorsSource(tmp_path)
    assert source.read_entry("stack", 40).sum() == 256 * 256
    assert 256 * 256 * 4 <= resident_bytes(file) < file.stat().st_size / 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", MIXTURES)
def test_units_are_those_of_the_whole_model(
    family: str, dtype: WeightDtype, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path, family)
    whole, units = load_model(tmp_path, dtype=dtype).experts, units_of(tmp_path, dtype)
    assert isinstance(whole, LocalExperts)
    for layer in range(units.config.num_layers):
        count = num_units(units.config, layer)
        assert len(whole.units[layer]) == count
        for expert in (0, count - 1):
            assert torch.equal(units.read(layer, expert)(ROWS), whole.units[layer][expert](ROWS))


def test_experts_differ_from_one_another(tmp_path: Path) -> None:
    units = units_of(tiny_checkpoint(tmp_path, "granitemoe"))
    answers = [units.read(0, expert)(ROWS) for expert in range(8)]
    assert not any(torch.equal(answers[0], other) for other in answers[1:])


def test_a_file_with_nothing_but_one_expert_is_enough(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "mixtral")
    edit_weights(tmp_path, ["layers.1.block_sparse_moe.experts.6."])
    units = units_of(tmp_path)
    assert units.read(1, 6)(ROWS).shape == (16, HIDDEN)
    with pytest.raises(ModelError, match=r"layers\.1\.block_sparse_moe\.experts\.5\.w1.*missing"):
        units.read(1, 5)


def test_the_ffn_of_a_dense_layer_is_its_expert_0(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "qwen2_moe")
    edit_weights(tmp_path, ["layers.1.mlp."])
    units = units_of(tmp_path)
    assert num_units(units.config, 1) == 1 and num_units(units.config, 2) == 12
    assert units.read(1, 0).gate_up.out_features == 2 * units.config.intermediate_size


@pytest.mark.parametrize(("layer", "expert"), [(1, 1), (0, 12), (0, -1), (3, 0), (-1, 0)])
def test_a_unit_that_the_model_has_not_is_named(layer: int, expert: int, tmp_path: Path) -> None:
    units = units_of(tiny_checkpoint(tmp_path, "qwen2_moe"))
    with pytest.raises(ModelError, match=f"{tmp_path}: layer {layer} has no expert {expert}"):
        units.read(layer, expert)


def test_a_dense_model_has_units_too_also_in_gguf(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tiny")
    file = write_gguf(directory, tmp_path / "model.gguf")
    answers = [units_of(path).read(2, 0)(ROWS) for path in (directory, file)]
    torch.testing.assert_close(answers[0], answers[1], rtol=0.05, atol=0.05)


def test_a_stack_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "granitemoe")
    edit_config(tmp_path, num_local_experts=9)
    complaint = (
        r"input_linear.weight' has shape \[8, 80, 64\], the configuration says \[9, 80, 64\]"
    )
    with pytest.raises(ModelError, match=complaint):
        units_of(tmp_path).read(0, 0)


def test_matrices_may_lie_transposed_interleaved_and_in_stacks_with_biases() -> None:
    draw = torch.Generator().manual_seed(7)
    plain, bias = torch.randn(4, 10, 6, generator=draw), torch.randn(4, 10, generator=draw)
    apart = torch.empty(4, 10, 6), torch.empty(4, 10)
    for lying, straight in zip(apart, (plain, bias), strict=True):
        lying[:, ::2], lying[:, 1::2] = straight[:, :5], straight[:, 5:]
    tensors = {"w": apart[0].transpose(1, 2).contiguous(), "b": apart[1]}
    source = CheckedSource(TensorSource(tensors, "memory"))
    for dtype, bits in (("float32", 0.0), ("int8", 0.05)):
        reader = WeightReader(source, dtype, 32, ReferencePacker())  # type: ignore[arg-type]
        linear = reader.joined(
            [Part("w", 10, stack=(2, 4), transposed=True, interleaved=True)],
            6,
            [Part("b", 10, stack=(2, 4), interleaved=True)],
        )
        rows = torch.eye(6)
        expected = rows @ plain[2].T + bias[2]
        torch.testing.assert_close(linear(rows), expected, rtol=bits, atol=bits)
