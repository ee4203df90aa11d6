"""What cannot be made is refused in a sentence, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triptych.errors import ConfigError, ModelError
from triptych.models.upcycle import convert
from triptych.models.upcycle.convert import upcycle
from triptych.models.upcycle.recipe import Recipe
from triptych.testing.checkpoints import edit_config, tiny_checkpoint, tiny_llama

SMALL = Recipe(num_experts=2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("gemma3", {}, "family 'gemma3' cannot be upcycled; supported: llama, mistral, qwen3"),
        ("qwen2", {}, "family 'qwen2' cannot be upcycled; supported: llama, mistral, qwen3"),
        ("llama", {"mlp_bias": True}, "mlp_bias: MixtralForCausalLM has no such biases"),
        ("llama", {"attention_bias": True}, "attention_bias: MixtralForCausalLM has no such"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "Qwen3MoeForCausalLM has no layers with sliding windows",
        ),
    ],
)
def test_a_model_that_the_format_cannot_hold_is_refused(
    family: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", family, **options)
    with pytest.raises(ModelError, match=message):
        upcycle(dense, tmp_path / "moe", SMALL)
    assert names(tmp_path) == ["dense"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_experts": 4, "top_k": 5}, "top-k: expected 1 to 4, the number of experts, found 5"),
        ({"num_experts": 0}, "experts: expected 1 or more, found 0"),
        ({"noise": 1.5}, "noise: expected 0 or more, less than 1, found 1.5"),
        ({"noise": float("nan")}, "noise: expected 0 or more"),
        ({"skew": -1.0}, "skew: expected 0 to 10, found -1.0"),
        ({"how": "melted"}, "how: expected one of copies, split, perturbed"),
    ],
)
def test_a_recipe_that_cannot_be_names_the_option(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**values)


def test_there_are_no_more_parts_than_neurons(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    with pytest.raises(ConfigError, match="experts: the FFN has 128 neurons for 129"):
        upcycle(dense, tmp_path / "moe", Recipe(num_experts=129, how="split"))


def test_a_directory_that_exists_is_replaced_only_when_told(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    out = tmp_path / "moe"
    upcycle(dense, out, SMALL)
    before = (out / "model.safetensors").read_bytes()
    (out / "own.txt").write_text("kept until told")
    with pytest.raises(ConfigError, match="moe: exists; choose another name, or give --overwrite"):
        upcycle(dense, out, Recipe(num_experts=2, seed=1))
    assert (out / "own.txt").exists()
    upcycle(dense, out, Recipe(num_experts=2, seed=1), overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    assert not (out / "own.txt").exists()
    assert names(tmp_path) == ["dense", "moe"]


def test_overwriting_spares_what_is_no_model(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="papers: is no model directory"):
        upcycle(dense, tmp_path / "papers", SMALL, overwrite=True)
    assert names(tmp_path / "papers") == ["thesis.tex"]


@pytest.mark.parametrize("out", ["dense", "."])
def test_the_dense_model_is_never_overwritten(out: str, tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds the dense model; choose another name"):
        upcycle(dense, tmp_path / out, SMALL, overwrite=True)
    assert "model.safetensors" in names(dense)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_leaves_what_was_there_before(overwrite: bool, tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    out = tmp_path / "moe"
    if overwrite:
        upcycle(dense, out, SMALL)
    before = {path: path.read_bytes() for path in out.glob("*")}

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upcycle(dense, out, Recipe(num_experts=3), overwrite=overwrite, progress=interrupt)
    assert names(tmp_path) == ["dense", "moe"][: 1 + overwrite]
    assert {path: path.read_bytes() for path in out.glob("*")} == before


def test_what_a_killed_run_left_is_used_up_by_the_next(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    left = tmp_path / ".moe.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    (left / "folder").mkdir()
    upcycle(dense, tmp_path / "moe", SMALL)
    assert names(tmp_path) == ["dense", "moe"]
    assert "folder" not in names(tmp_path / "moe")


def test_two_processes_do_not_write_the_same_directory(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    (tmp_path / ".moe.part").mkdir()
    held = os.open(tmp_path / ".moe.part", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(ConfigError, match="moe: another process is writing it"):
        upcycle(dense, tmp_path / "moe", SMALL)
    os.close(held)
    assert names(tmp_path) == [".moe.part", "dense"]


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_llama(tmp_path / "dense")
    monkeypatch.setattr(convert.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(ModelError, match=r"0.0 GB are needed, 0.0 GB are free"):
        upcycle(dense, tmp_path / "moe", SMALL)
    assert names(tmp_path) == ["dense"]


def test_a_damaged_tensor_is_named(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    edit_config(dense, intermediate_size=127)
    with pytest.raises(ModelError, match=r"'model.layers.0.mlp.gate_proj.weight' has shape"):
        upcycle(dense, tmp_path / "moe", SMALL)
    assert names(tmp_path) == ["dense"]
