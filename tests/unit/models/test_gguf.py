"""A GGUF file and the directory it was made from are the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.gguf_header import read_header
from triptych.models.load import load_config, load_model
from triptych.testing.checkpoints import tiny_checkpoint, tiny_llama
from triptych.testing.dense_kv import DenseSequence
from triptych.testing.gguf_files import write_gguf

PROMPT = [(7 * at * at + 3) % 199 for at in range(40)]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen3", {}),
    ("gemma3", {"query_pre_attn_scalar": 32, "rope_parameters": GEMMA_ROPES}),
]


def logits_of(path: Path) -> Tensor:
    return DenseSequence(load_model(path, dtype="float32")).extend(PROMPT)


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_a_gguf_file_gives_the_logits_of_its_directory(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    directory = tiny_checkpoint(tmp_path / "hf", family, **options)
    file = write_gguf(directory, tmp_path / "model.gguf")
    torch.testing.assert_close(logits_of(file), logits_of(directory), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
def test_quantised_weights_are_dequantised_at_load(
    kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    directory = tiny_llama(tmp_path)
    file = write_gguf(directory, tmp_path / "model.gguf", kind)
    exact = logits_of(directory)
    _round_weights(directory / "model.safetensors", kind)
    rounded = logits_of(directory)
    assert not torch.allclose(rounded, exact, atol=1e-3)
    torch.testing.assert_close(logits_of(file), rounded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.F16, GGMLQuantizationType.BF16])
def test_half_precision_gguf_is_read(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    directory = tiny_llama(tmp_path)
    file = write_gguf(directory, tmp_path / "model.gguf", kind)
    torch.testing.assert_close(logits_of(file), logits_of(directory), rtol=0.1, atol=0.1)


def test_the_header_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf", GGMLQuantizationType.Q8_0)
    header, reader = read_header(file), gguf.GGUFReader(file)
    fields = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert header.metadata == fields
    assert [(t.name, t.offset, t.num_bytes, t.kind) for t in header.tensors.values()] == [
        (t.name, t.data_offset, t.n_bytes, t.tensor_type) for t in reader.tensors
    ]


def test_every_cut_of_a_gguf_file_is_a_model_error(tmp_path: Path) -> None:
    whole = write_gguf(tiny_llama(tmp_path, num_layers=1), tmp_path / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in (0, 3, 20, 100, 1000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="cut.gguf: not a readable GGUF file"):
            load_model(cut, dtype="float32")


def test_a_damaged_gguf_header_is_a_model_error(tmp_path: Path) -> None:
    file = write_gguf(tiny_llama(tmp_path, num_layers=1), tmp_path / "model.gguf")
    whole = file.read_bytes()
    for at in range(0, 2000, 7):
        file.write_bytes(whole[:at] + bytes([255]) * 8 + whole[at + 8 :])
        try:
            load_model(file, dtype="float32")
        except ModelError as error:
            assert "model.gguf" in str(error)


def test_unsupported_gguf_files_are_refused_by_name(tmp_path: Path) -> None:
    def written(arch: str, **values: int) -> Path:
        writer = gguf.GGUFWriter(tmp_path / "odd.gguf", arch)
        for key, value in values.items():
            writer.add_uint32(f"{arch}.{key}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / "odd.gguf"

    with pytest.raises(ModelError, match="'bloom' is not supported.*llama, qwen2, qwen3, gemma3"):
        load_config(written("bloom"))
    with pytest.raises(ModelError, match="llama.expert_count.*mixtures of experts"):
        load_config(written("llama", expert_count=8))
    with pytest.raises(ModelError, match="tensor 'token_embd.weight' is missing"):
        load_config(written("llama"))


def test_an_unsupported_quantisation_is_named(tmp_path: Path) -> None:
    file = write_gguf(tiny_llama(tmp_path), tmp_path / "model.gguf")
    data, name = bytearray(file.read_bytes()), b"token_embd.weight"
    kind_at = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of dimensions and both
    data[kind_at : kind_at + 4] = GGMLQuantizationType.Q8_1.to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(ModelError, match="'token_embd.weight': quantisation Q8_1 is not supported"):
        load_model(file, dtype="float32")


def _round_weights(file: Path, kind: GGMLQuantizationType) -> None:
    weights = load_file(file)
    for name, weight in weights.items():
        if weight.ndim == 2:
            weights[name] = gguf.dequantize(gguf.quantize(weight, kind), kind)
    save_file(weights, file)
