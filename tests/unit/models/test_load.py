"""What a user is told when a directory's files are damaged, missing or not what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from triptych.errors import ModelError
from triptych.models.load import load_config, load_model
from triptych.testing.checkpoints import edit_config, tiny_checkpoint, tiny_llama
from triptych.testing.dense_kv import DenseSequence, greedy_tokens

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny")


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors")


def halve_matrices(weights: dict[str, Tensor]) -> None:
    matrices = {name: w.to(torch.bfloat16) for name, w in weights.items() if w.ndim == 2}
    weights.update(matrices)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path, dtype="float32")
    return str(caught.value)


def test_a_tiny_llama_says_the_same_every_time(directory: Path, tmp_path: Path) -> None:
    first = greedy_tokens(load_model(directory, dtype="float32"), [1, 2, 3], 12)
    again = load_model(tiny_llama(tmp_path / "again"), dtype="float32")
    other = load_model(tiny_llama(tmp_path / "other", seed=1), dtype="float32")
    assert greedy_tokens(again, [1, 2, 3], 12) == first
    assert greedy_tokens(other, [1, 2, 3], 12) != first
    assert len(set(first)) > 3


def test_shards_give_the_same_model_as_one_file(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path / "whole", "llama")
    shards = tiny_checkpoint(tmp_path / "shards", "llama", max_shard_size="40KB")
    assert len(list(shards.glob("*.safetensors"))) > 3
    logits = [
        DenseSequence(load_model(path, dtype="float32")).extend(range(9))
        for path in (whole, shards)
    ]
    assert torch.equal(*logits)


def test_progress_counts_every_tensor(directory: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_model(directory, dtype="float32", progress=lambda *call: calls.append(call))
    total = len(load_file(directory / "model.safetensors"))
    assert calls == [(done, total) for done in (*range(1, total + 1), total)]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"{tmp_path}/absent: No such file or directory"


def test_a_directory_without_config_is_named(tmp_path: Path) -> None:
    assert "config.json: No such file or directory" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_config_is_named(directory: Path, text: str) -> None:
    (directory / "config.json").write_bytes(text.encode("latin-1"))
    assert "tiny/config.json: " in refusal(directory)


def test_a_directory_without_weights_is_named(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(directory)
    assert load_config(directory).num_layers == 3


def test_every_cut_of_a_safetensors_file_is_a_model_error(directory: Path) -> None:
    file = directory / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "model.safetensors: not a complete safetensors file" in refusal(directory)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "llama", max_shard_size="40KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert refusal(tmp_path) == f"{shard}: file is missing"


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_named(directory: Path, index: str) -> None:
    (directory / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json: not a safetensors index" in refusal(directory)


def test_a_missing_tensor_is_named(directory: Path) -> None:
    rewrite(directory, lambda weights: weights.pop(NORM))
    assert refusal(directory) == f"{directory}: tensor '{NORM}' is missing"


def test_a_wrong_shape_is_named(directory: Path) -> None:
    edit_config(directory, intermediate_size=130)
    name = "model.layers.0.mlp.gate_proj.weight"
    assert refusal(directory) == (
        f"{directory}: tensor '{name}' has shape [128, 64], the configuration says [130, 64]"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_safetensors_are_refused(directory: Path, dtype: torch.dtype) -> None:
    rewrite(directory, lambda weights: weights.update({NORM: weights[NORM].to(dtype)}))
    kind = str(dtype).removeprefix("torch.")
    assert f"tensor '{NORM}' is {kind}: quantised" in refusal(directory)


def test_tensors_that_nobody_asked_for_are_logged(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {name: torch.zeros(1) for name in ("model.layers.0.rotary_emb.inv_freq", "surprise")}
    rewrite(directory, lambda weights: weights.update(extra))
    load_model(directory, dtype="float32")
    assert [record.message for record in caplog.records] == [
        f"{directory}: 1 unused tensors: surprise"
    ]


def test_a_tied_head_stored_twice_is_no_surprise(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit_config(directory, tie_word_embeddings=True)
    load_model(directory, dtype="float32")
    assert not caplog.records


def test_weights_may_be_stored_in_another_dtype(directory: Path) -> None:
    expected = DenseSequence(load_model(directory, dtype="bfloat16")).extend(range(9))
    rewrite(directory, halve_matrices)
    stored_half = load_model(directory, dtype="bfloat16")
    assert torch.equal(DenseSequence(stored_half).extend(range(9)), expected)


def test_a_tiny_llama_can_be_served_with_its_tokenizer(directory: Path) -> None:
    tokenizer_config = json.loads((directory / "tokenizer_config.json").read_text())
    vocab = json.loads((directory / "tokenizer.json").read_text())
    tokens = {token["content"]: token["id"] for token in vocab["added_tokens"]}
    config = load_config(directory)
    assert config.eos_token_ids == (tokens[tokenizer_config["eos_token"]],)
    assert config.vocab_size > max(tokens.values())
