"""Models in int8 and int4: which matrices are taken as stored, and what a user is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.load import load_model
from triptych.models.model import Model
from triptych.models.storage import QuantReport, WeightDtype, is_small, kept_bits
from triptych.testing.checkpoints import edit_config, tiny_llama
from triptych.testing.dense_kv import DenseSequence
from triptych.testing.gguf_files import write_gguf
from triptych_kernels.packer import LinearLike, ReferencePacker
from triptych_kernels.quant import Affine

Q4_0, Q4_1, Q5_1, Q8_0, F16 = (
    GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16")
)
MIXED = {"v_proj": Q8_0, "down_proj": Q5_1, "up_proj": F16, "embed": Q8_0, "lm_head": Q8_0}
LAYERS, MATRICES = 3, 7 * 3 + 2  # of the tiny model: with embedding and head


class FormatLog(ReferencePacker):
    """Remembers in which formats matrices arrive."""

    def __init__(self) -> None:
        self.formats: list[tuple[int, int]] = []

    def affine(
        self, weight: Affine, bias: Tensor | None = None, *, gated: bool = False
    ) -> LinearLike:
        self.formats.append((weight.bits, weight.group))
        return super().affine(weight, bias, gated=gated)


def logits_of(model: Model) -> Tensor:
    return DenseSequence(model).extend(range(3, 40))


def report_of(path: Path, dtype: WeightDtype, group: int = 32) -> QuantReport:
    report = load_model(path, dtype=dtype, group=group).quantisation
    assert report is not None
    return report


@pytest.mark.parametrize("dtype", ["int4", "int8"])
@pytest.mark.parametrize("kind", [Q4_0, Q4_1])
def test_a_4_bit_file_gives_the_same_logits_on_its_own_grids(
    kind: GGMLQuantizationType, dtype: WeightDtype, tmp_path: Path
) -> None:
    others = {"embed": Q8_0, "lm_head": Q8_0}
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", kind, others)
    model = load_model(file, dtype=dtype, group=128)
    assert torch.equal(logits_of(model), logits_of(load_model(file, dtype="float32")))
    report = model.quantisation
    assert report is not None and report.requantised == 0 and report.worst_error == 0
    assert report.native == (MATRICES if dtype == "int4" else 2)
    assert report.promoted == MATRICES - report.native


@pytest.mark.parametrize(
    ("dtype", "near"), [("float32", 1e-6), ("bfloat16", 0.05), ("int8", 0.05), ("int4", 0.05)]
)
def test_a_file_of_mixed_types_loads_in_every_dtype(
    dtype: WeightDtype, near: float, tmp_path: Path
) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", Q4_1, MIXED)
    exact = logits_of(load_model(file, dtype="float32"))
    wrong = logits_of(load_model(file, dtype=dtype)) - exact
    assert float(wrong.norm() / exact.norm()) < near


def test_an_int4_model_is_nowhere_coarser_than_its_small_file(tmp_path: Path) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", Q4_1, MIXED)
    packer = FormatLog()
    load_model(file, dtype="int4", packer=packer)
    head, (qkv, output, gate_up, down) = packer.formats[0], packer.formats[1:5]
    assert head == (8, 32)
    assert output == (4, 32)
    assert qkv == down == (8, 32)  # Q8_0 among them; Q5_1
    assert gate_up == (8, 32)  # F16 in a small file is there on purpose


@pytest.mark.parametrize("kind", [Q8_0, F16, GGMLQuantizationType.F32])
def test_int4_of_a_large_file_is_4_bit_with_an_8_bit_head(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", kind)
    packer = FormatLog()
    report = load_model(file, dtype="int4", group=64, packer=packer).quantisation
    assert packer.formats[1:] == [(4, 64)] * 4 * LAYERS
    assert packer.formats[0] == (8, 32 if kind is Q8_0 else 64)
    assert report is not None and report.requantised == MATRICES - 2 * (kind is Q8_0)
    assert 0.01 < report.mean_error <= report.worst_error < 0.15
    assert ".layers." in report.worst_tensor and 4 < report.bits_per_weight < 7


def test_directories_are_quantised_too(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    exact = logits_of(load_model(directory, dtype="float32"))
    models = [load_model(directory, dtype=dtype) for dtype in ("int8", "int4")]
    wrong = [float((logits_of(model) - exact).norm() / exact.norm()) for model in models]
    assert 0 < wrong[0] < 0.03 and wrong[0] < wrong[1] < 0.5
    assert all(model.quantisation and model.quantisation.native == 0 for model in models)


def test_float_models_report_no_quantising(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    assert load_model(directory, dtype="bfloat16").quantisation is None


def test_smaller_groups_cost_bits_and_save_error(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    fine, coarse = (report_of(directory, "int4", group) for group in (32, 64))
    assert fine.bits_per_weight > coarse.bits_per_weight
    assert fine.mean_error < coarse.mean_error


def test_a_tied_head_and_its_embedding_are_one_matrix(tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    edit_config(directory, tie_word_embeddings=True)
    assert report_of(directory, "int4").requantised == MATRICES - 1


def test_one_line_tells_what_quantising_did(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", Q4_1, MIXED)
    with caplog.at_level(logging.INFO, "triptych"):
        load_model(file, dtype="int4")
    (record,) = caplog.records
    assert "model.gguf: matrices: 11 as stored, 9 in a finer format, 3 re-quantised" in (
        record.message
    )
    assert "bits per weight; relative error of the re-quantised: mean 0." in record.message


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    file = tiny_llama(tmp_path) / "model.safetensors"
    weights, name = load_file(file), "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 3] = torch.nan
    save_file(weights, file)
    with pytest.raises(ModelError, match=f"'{name}': weights are not finite.*get it again"):
        load_model(tmp_path, dtype="int4")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_wrong_shape_is_named_on_its_own_grid_too(dtype: WeightDtype, tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path / "tiny")
    file = write_gguf(directory, tmp_path / "model.gguf", Q4_1)
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.0.self_attn.o_proj.weight"
    weights[name] = weights[name][:, :32].contiguous()
    save_file(weights, directory / "model.safetensors")
    write_gguf(directory, file, Q4_1)
    with pytest.raises(ModelError, match=r"o_proj.weight' has shape \[64, 32\].*\[64, 64\]"):
        load_model(file, dtype=dtype)


@pytest.mark.parametrize(
    ("stored", "in_small_file", "in_large_file"),
    [(2.6, 4, 4), (4.5, 4, 4), (5.0, 4, 4), (5.5, 8, 8), (6.5625, 8, 4), (8.5, 8, 4), (16, 8, 4)],
)
def test_int4_rounds_only_what_nobody_kept_small(
    stored: float, in_small_file: int, in_large_file: int
) -> None:
    assert kept_bits(4, stored, small_file=True, head=False) == in_small_file
    assert kept_bits(4, stored, small_file=False, head=False) == in_large_file
    assert kept_bits(8, stored, small_file=False, head=False) == 8
    assert kept_bits(4, stored, small_file=False, head=True) == 8


def test_a_file_is_small_when_most_of_its_weights_are() -> None:
    assert is_small([(4.5, 100), (6.5625, 99)])
    assert not is_small([(4.5, 99), (8.5, 100)])
    assert not is_small([])
