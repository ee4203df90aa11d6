"""`triptych models upcycle` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from triptych.launch.cli import app
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.gguf_files import write_gguf
from triptych.tokenizer import Tokenizer

run = CliRunner().invoke


def test_a_gguf_file_becomes_a_directory_and_the_result_is_told(tmp_path: Path) -> None:
    file = write_gguf(tiny_llama(tmp_path / "dense"), tmp_path / "dense.gguf")
    out = tmp_path / "moe"
    options = ["--experts", "4", "--how", "split", "--top-k", "3", "--dtype", "float32"]
    result = run(app, ["models", "upcycle", str(file), str(out), *options])
    assert result.exit_code == 0, result.output
    progress = [line for line in result.output.splitlines() if line.startswith("writing ")]
    assert progress and " MiB" in progress[-1]
    assert f"{out}  MixtralForCausalLM, 0.00 GB" in result.output
    assert "3 of 4" in result.output and "an approximation" in result.output
    config = json.loads((out / "config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (4, 3)
    assert config["torch_dtype"] == "float32"
    chat = [{"role": "user", "content": "the naïve 漢字🙂  <tool>"}]
    assert Tokenizer.load(out).encode_chat(chat) == Tokenizer.load(file).encode_chat(chat)


def test_copies_say_that_they_are_the_dense_model(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    result = run(app, ["models", "upcycle", str(dense), str(tmp_path / "moe")])
    assert result.exit_code == 0, result.output
    assert "2 of 8" in result.output and "the dense model, but for rounding" in result.output


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    result = run(app, ["models", "upcycle", str(dense), str(tmp_path / "moe"), "--top-k", "9"])
    assert result.exit_code == 2
    assert result.stderr == ("error: top-k: expected 1 to 8, the number of experts, found 9\n")
    assert not (tmp_path / "moe").exists()


def test_an_existing_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    result = run(app, ["models", "upcycle", str(dense), str(dense)])
    assert result.exit_code == 2
    assert "dense: exists; choose another name, or give --overwrite" in result.stderr


def test_a_model_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    result = run(app, ["models", "upcycle", "./no-such-model", str(tmp_path / "moe")])
    assert result.exit_code == 2
    assert "./no-such-model: no such model or path" in result.stderr
