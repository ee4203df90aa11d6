from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from triptych.config import load_config
from triptych.launch.cli import app

run = CliRunner().invoke

HEAVY = ("grpc", "httpx", "pydantic", "torch", "rich.live", "yaml")


def test_help_imports_nothing_heavy() -> None:
    source = (
        "import sys; from triptych.launch.cli import app\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["up", "chat", "models", "doctor", "config", "plan"])
def test_every_command_explains_itself(command: str) -> None:
    result = run(app, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_config_show_prints_a_config_that_reads_back_the_same(tmp_path: Path) -> None:
    result = run(app, ["config", "show", "--set", "engine.chunk_tokens=64"])
    assert result.exit_code == 0
    assert yaml.safe_load(result.output)["engine"]["chunk_tokens"] == 64
    file = tmp_path / "shown.yaml"
    file.write_text(result.output)
    assert load_config(file) == load_config(None, ["engine.chunk_tokens=64"])


def test_config_check_says_what_a_file_starts(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("pools: [{name: solo, role: decode, replicas: 2}]\n")
    result = run(app, ["config", "check", str(file)])
    assert result.exit_code == 0
    assert result.output == f"{file}: ok: smollm2-135m, 2 decode (solo)\n"


def test_an_unknown_key_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("router: {prot: 80}\n")
    result = run(app, ["config", "check", str(file)])
    assert result.exit_code == 2
    assert result.stderr == f"error: {file}: router.prot: unknown key\n"
    assert result.stdout == ""


def test_up_without_a_prompt_cannot_exit_after_it() -> None:
    result = run(app, ["up", "--exit"])
    assert result.exit_code == 2
    assert "only with --prompt" in result.stderr


def test_up_with_a_bad_override_starts_nothing() -> None:
    result = run(app, ["up", "--set", "drain_s=soon"])
    assert result.exit_code == 2
    assert "drain_s: Input should be a valid number" in result.stderr


def test_up_with_a_model_that_does_not_exist_starts_nothing() -> None:
    result = run(app, ["up", "./no-such-model"])
    assert result.exit_code == 2
    assert "./no-such-model: no such model or path" in result.stderr


def test_models_list_names_the_models_that_can_be_pulled() -> None:
    result = run(app, ["models", "list"])
    assert result.exit_code == 0
    assert "smollm2-135m" in result.output


def test_pulling_an_unknown_model_names_the_known_ones() -> None:
    result = run(app, ["models", "pull", "gpt-17"])
    assert result.exit_code == 2
    assert "smollm2-135m" in result.stderr


def test_doctor_refuses_a_link_that_does_not_exist() -> None:
    result = run(app, ["doctor", "--links", "shm,pigeon"])
    assert result.exit_code == 2
    assert "pigeon" in result.stderr


def test_the_version_is_the_installed_one() -> None:
    assert run(app, ["--version"]).output.strip().count(".") == 2
