"""The native library is compiled once per machine, and nothing breaks where it cannot be."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from triptych_kernels.cpu import build
from triptych_kernels.cpu.build import COMPILERS, BuildError, build_library, default_cache
from triptych_kernels.cpu.levels import LEVELS, Level, usable_levels

LEVEL = LEVELS[-1]
ROOT = Path(__file__).parents[3]
COMPILER = next(filter(None, map(shutil.which, COMPILERS)), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Two small files in place of the real ones."""
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "answer.h").write_text("#define ANSWER 1\n")
    (folder / "answer.cpp").write_text(
        '#include "answer.h"\n'
        'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
    )
    (folder / "other.cpp").write_text("int other() { return 0; }\n")
    return folder


def answer_of(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def run_python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT / 'kernels'}", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_compiler
def test_a_second_build_is_the_first(sources: Path, tmp_path: Path) -> None:
    first = build_library(LEVEL, tmp_path / "cache", sources)
    made = first.stat()
    assert build_library(LEVEL, tmp_path / "cache", sources) == first
    assert (first.stat().st_ino, first.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)


@needs_compiler
def test_a_changed_header_makes_a_new_library(sources: Path, tmp_path: Path) -> None:
    old = build_library(LEVEL, tmp_path / "cache", sources)
    (sources / "answer.h").write_text("#define ANSWER 2\n")
    new = build_library(LEVEL, tmp_path / "cache", sources)
    assert (answer_of(old), answer_of(new)) == (1, 2)


@needs_compiler
def test_other_flags_make_another_library(sources: Path, tmp_path: Path) -> None:
    flags = ("-shared", "-fPIC")
    assert build_library(LEVEL, tmp_path, sources, flags) != build_library(LEVEL, tmp_path, sources)


@needs_compiler
def test_processes_that_build_at_once_compile_once(sources: Path, tmp_path: Path) -> None:
    tools, log = tmp_path / "tools", tmp_path / "calls"
    tools.mkdir()
    (tools / "g++").write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {COMPILER} "$@"\n')
    (tools / "g++").chmod(0o755)
    code = (
        "from pathlib import Path; from triptych_kernels.cpu.build import build_library;"
        "from triptych_kernels.cpu.levels import LEVELS;"
        f"cache, sources = Path({str(tmp_path / 'cache')!r}), Path({str(sources)!r});"
        "print(build_library(LEVELS[-1], cache, sources))"
    )
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    builders = [run_python(code, PATH=path) for _ in range(3)]
    answers = {builder.communicate()[0].strip() for builder in builders}
    assert len(answers) == 1
    assert answer_of(Path(answers.pop())) == 1
    links = [call for call in log.read_text().splitlines() if "-shared" in call]
    assert len(links) == 1


@needs_compiler
def test_what_an_image_brings_is_used_without_a_compiler_or_a_cache(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(build, "SOURCES", sources)
    build.prebuild(build.PREBUILT)
    monkeypatch.setenv("PATH", str(tmp_path))
    for level in LEVELS:
        library = build_library(level, tmp_path / "cache", sources)
        assert library.parent == build.PREBUILT
        assert library.name.startswith(level.name)
    assert not (tmp_path / "cache").exists()


@needs_compiler
def test_a_source_that_does_not_compile_is_told_with_the_reason(
    sources: Path, tmp_path: Path
) -> None:
    (sources / "other.cpp").write_text("int other() { return nonsense; }\n")
    with pytest.raises(BuildError, match="nonsense"):
        build_library(LEVEL, tmp_path / "cache", sources)
    assert not list((tmp_path / "cache").glob("*.so"))


def test_without_a_compiler_there_is_one_warning_and_no_library(tmp_path: Path) -> None:
    code = (
        "import logging; logging.basicConfig();"
        "from triptych_kernels.cpu.native import native;"
        "assert native() is None and native() is None"
    )
    process = run_python(code, PATH=str(tmp_path), HOME=str(tmp_path))
    _, told = process.communicate()
    assert process.returncode == 0, told
    assert told.count("no C++ compiler found") == 1
    assert told.count("WARNING") == 1


@needs_compiler
@pytest.mark.parametrize("level", usable_levels(), ids=lambda level: level.name)
def test_the_kernels_compile_for_every_cpu(level: Level) -> None:
    assert build_library(level, default_cache()).exists()
