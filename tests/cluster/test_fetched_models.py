"""`triptych up` brings what its processes load: the target's weights, and drafters'."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.config import cache_dir
from triptych.testing.checkpoints import tiny_llama
from triptych.testing.file_server import serving
from triptych_kernels.cpu.native import native

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
CALL = "from triptych.launch.cli import main; main()"
DRAFTERS = "speculation.drafters=[{kind: draft_model, model: hf://org/draft, width: 1}]"


def test_models_of_drafters_are_fetched_like_that_of_the_target(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    home = home_with_kernels(tmp_path / "home")
    with serving() as hub:
        hub.repos = {"org/target": files, "org/draft": files}

        def up(**environment: str) -> subprocess.CompletedProcess[str]:
            settings = ("--port=0", "--decode=1", "--prefill=0", "--set", DRAFTERS)
            settings += ("--set", "kv.memory=16MiB", "--set", "speculation.mode=fixed")
            question = ("--prompt=Why?", "--max-tokens=20", "--exit")
            return subprocess.run(
                [sys.executable, "-c", CALL, "up", "hf://org/target", *settings, *question],
                env={
                    **os.environ,
                    "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
                    "HF_ENDPOINT": hub.url,
                    "TRIPTYCH_HOME": str(home),
                    **environment,
                },
                capture_output=True,
                text=True,
            )

        refused = up(HF_HUB_OFFLINE="1")
        assert refused.returncode == 2, "nothing is there yet"
        done = up()
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("target", "draft"):
            assert f"fetching hf://org/{name}: 0 of 0 MiB" in done.stdout
        brought = [path for path, _ in hub.asked if path.endswith("model.safetensors")]
        assert [path.split("/resolve/")[0] for path in brought] == ["/org/target", "/org/draft"]


def home_with_kernels(home: Path) -> Path:
    """A cache without models, but with the kernels that are compiled already."""
    native()
    home.mkdir()
    if (cache_dir() / "kernels").exists():
        (home / "kernels").symlink_to(cache_dir() / "kernels")
    return home
