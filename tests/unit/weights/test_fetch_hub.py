"""The real huggingface_hub asks a small hub on loopback what there is."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.config import load_config
from triptych.errors import ConfigError, ModelError
from triptych.hub import resolve_model
from triptych.testing.file_server import COMMIT, FileServer
from triptych.weights.download import PATIENCE, Downloader, new_client
from triptych.weights.fetch import fetch
from triptych.weights.place import cache_folder
from triptych.weights.record import read_record
from triptych.weights.source import parse_source

ROOT = Path(__file__).parents[3]
CALL = "from triptych.launch.cli import main; main()"
REPO = {
    "README.md": b"# tiny",
    "config.json": b'{"model_type": "llama"}',
    "consolidated.safetensors": b"the same weights, differently",
    "model-1.safetensors": b"first" * 1000,
    "model-2.safetensors": b"second" * 1000,
    "onnx/model.onnx": b"onnx",
    "pytorch_model.bin": b"pickle",
    "tokenizer.json": b"{}",
}
WANTED = ["config.json", "model-1.safetensors", "model-2.safetensors", "tokenizer.json"]


@pytest.fixture
def hub(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    from huggingface_hub import constants

    # It reads HF_ENDPOINT when it is imported; the command's test sets that.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    server.repos = {"org/tiny": dict(REPO), "org/ggufs": {"a.gguf": b"GGUF a", "b.gguf": b"GGUF b"}}
    yield server


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_repository_brings_what_loading_reads_and_config_last(
    hub: FileServer, tmp_path: Path
) -> None:
    folder = fetch(parse_source("hf://org/tiny"), tmp_path / "to")
    assert names(folder) == WANTED
    assert all((folder / name).read_bytes() == REPO[name] for name in WANTED)
    assert [path.rpartition("/")[2] for path, _ in hub.asked][-1] == "config.json"
    assert read_record(folder)["hf://org/tiny"].revision == COMMIT


def test_a_single_file_of_a_repository_comes_alone(hub: FileServer, tmp_path: Path) -> None:
    path = fetch(parse_source("hf://org/ggufs@main/b.gguf"), tmp_path)
    assert (path.name, path.read_bytes()) == ("b.gguf", b"GGUF b")
    assert names(tmp_path) == ["b.gguf"]


def test_a_file_that_is_not_the_one_asked_for_is_refused_before_it_comes(
    hub: FileServer, tmp_path: Path
) -> None:
    right = hashlib.sha256(b"GGUF b").hexdigest()
    with pytest.raises(ModelError, match=f"the hub has sha256:{right}, expected sha256:0000"):
        fetch(parse_source("hf://org/ggufs/b.gguf", "0" * 64), tmp_path)
    assert hub.asked == []
    assert fetch(parse_source("hf://org/ggufs/b.gguf", right), tmp_path).read_bytes() == b"GGUF b"


def test_a_hub_that_is_busy_is_asked_again(hub: FileServer, tmp_path: Path) -> None:
    hub.statuses = [503]
    waits: list[float] = []
    with new_client() as client:
        downloader = Downloader(client, waits.append)
        fetch(parse_source("hf://org/tiny"), tmp_path, downloader=downloader)
    assert names(tmp_path) == WANTED
    assert waits == [PATIENCE[0]]


@pytest.mark.parametrize("damaged", ["model-1.safetensors", "config.json"])
def test_bytes_other_than_the_hub_states_are_refused(
    hub: FileServer, tmp_path: Path, damaged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hub.bytes_of
    monkeypatch.setattr(
        hub,
        "bytes_of",
        lambda path: bytes(len(REPO[damaged])) if path.endswith(damaged) else honest(path),
    )
    with pytest.raises(ModelError, match=f"{damaged}: what came has a wrong checksum"):
        fetch(parse_source("hf://org/tiny"), tmp_path)
    assert damaged not in names(tmp_path)
    assert "config.json" not in names(tmp_path)  # no model to anybody


def test_what_is_whole_is_not_fetched_twice_after_an_interruption(
    hub: FileServer, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done > len(REPO["model-1.safetensors"]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(parse_source("hf://org/tiny"), tmp_path, stop)
    hub.asked.clear()
    fetch(parse_source("hf://org/tiny"), tmp_path)
    assert not any(path.endswith("model-1.safetensors") for path, _ in hub.asked)
    assert names(tmp_path) == WANTED


def test_a_gated_repository_names_the_token_and_where_to_get_leave(
    hub: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = {"org/tiny"}
    with pytest.raises(ModelError, match=r"accept its terms at .*/org/tiny, and set HF_TOKEN"):
        fetch(parse_source("hf://org/tiny"), tmp_path)
    monkeypatch.setenv("HF_TOKEN", "leave")
    fetch(parse_source("hf://org/tiny"), tmp_path)
    assert names(tmp_path) == WANTED


@pytest.mark.parametrize(
    "source, message",
    [
        ("hf://org/absent", "has no such repository.*set HF_TOKEN if it is private"),
        ("hf://org/tiny@v9", "org/tiny has no revision 'v9'"),
        ("hf://org/ggufs/c.gguf", r"no such file; the repository has a\.gguf, b\.gguf"),
        ("hf://org/ggufs", r"name one of its files, e\.g\. hf://org/ggufs/a\.gguf"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(
    hub: FileServer, tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        fetch(parse_source(source), tmp_path)


def test_a_model_of_the_config_is_found_where_it_was_fetched_to(hub: FileServer) -> None:
    config = load_config(None, ["model=hf://org/tiny@main"])
    assert config.served_name == "tiny"
    with pytest.raises(ModelError, match="run `triptych fetch hf://org/tiny@main`"):
        resolve_model(config.model)
    source = parse_source(config.model)
    folder = fetch(source, cache_folder(source))
    assert resolve_model(config.model) == folder
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match="is not fetched yet"):
        resolve_model(config.model)


def test_a_wrong_source_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match="model: hf://tiny: no source of weights"):
        load_config(None, ["model=hf://tiny"])


def test_the_command_says_where_it_is_and_does_not_ask_when_offline(
    hub: FileServer, tmp_path: Path
) -> None:
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", CALL, "fetch", "hf://org/tiny"],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}", **environment},
            capture_output=True,
            text=True,
        )

    offline = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert offline.returncode == 2
    assert f"HF_HUB_OFFLINE forbids to ask {hub.url}" in offline.stderr
    done = run(HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert "fetching hf://org/tiny: 0 of 0 MiB" in done.stdout
    [last] = done.stdout.splitlines()[-1:]
    assert resolve_model("hf://org/tiny") == Path(last.removeprefix("hf://org/tiny: "))
    again = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
