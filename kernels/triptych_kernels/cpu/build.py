"""Compiles the C++ sources into one shared library, once per machine.

The file's name holds a hash of everything that decides its contents (sources, flags, compiler), so
a changed source or a home directory shared by different machines get a library of their own. An
image build compiles every level ahead: `python -m triptych_kernels.cpu.build --cache DIR`.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from triptych_kernels.cpu.levels import LEVELS, Level

SOURCES = Path(__file__).parent / "src"
PREBUILT = Path(__file__).parent / "prebuilt"  # filled when an image is built; need not exist
COMPILERS = ("g++", "c++", "clang++")
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    # A bit depends on whether a product is rounded before it is added: never leave that to -O3.
    "-ffp-contract=off",
    *("-Wall", "-Wextra"),
    # False alarms, by the thousand, in GCC's own vector headers.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"),
)
COMPILE_TIMEOUT_S = 300

_log = logging.getLogger(__name__)


class BuildError(Exception):
    """The library cannot be built on this machine; the message says why."""


def default_cache() -> Path:
    """Where the project keeps all that it makes: $TRIPTYCH_HOME, else the user's cache."""
    home = os.environ.get("TRIPTYCH_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(home) if home else Path(cache) / "triptych") / "kernels"


def build_library(
    level: Level, cache: Path, sources: Path = SOURCES, flags: tuple[str, ...] = FLAGS
) -> Path:
    """Path of the library for these sources and this level, from the cache or newly compiled.

    Processes that ask at the same time wait for the one that compiles. Raises BuildError, or
    OSError when the cache cannot be written.
    """
    flags = (*flags, f"-march={level.march}")
    ready = PREBUILT / f"{level.name}-{_source_key(sources, flags)}.so"
    if ready.exists():
        return ready
    compiler = _find_compiler()
    version = hashlib.sha256(_run([compiler, "--version"]).encode()).hexdigest()[:8]
    target = cache / f"{level.name}-{_source_key(sources, flags)}-{version}.so"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(compiler, sources, flags, target)
    return target


def prebuild(target: Path) -> None:
    """Compiles every level into `target`, under the names that `build_library` looks for."""
    target.mkdir(parents=True, exist_ok=True)
    for level in LEVELS:
        flags = (*FLAGS, f"-march={level.march}")
        library = target / f"{level.name}-{_source_key(SOURCES, flags)}.so"
        _compile(_find_compiler(), SOURCES, flags, library)


def _find_compiler() -> str:
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler found (looked for {', '.join(COMPILERS)})")


def _source_key(sources: Path, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in sorted(sources.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    for flag in flags:
        digest.update(flag.encode() + b"\0")
    return digest.hexdigest()[:20]


def _compile(compiler: str, sources: Path, flags: tuple[str, ...], target: Path) -> None:
    """Compiles beside the target and renames, so that a half-written library is never seen."""
    _log.info("compiling native CPU kernels into %s (once, some seconds)", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        files = sorted(sources.glob("*.cpp"))
        objects = [f"{scratch}/{file.stem}.o" for file in files]
        commands = [
            [compiler, *flags, "-c", str(file), "-o", made]
            for file, made in zip(files, objects, strict=True)
        ]
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            list(pool.map(_run, commands))
        linked = f"{scratch}/linked.so"
        _run([compiler, *flags, "-shared", *objects, "-o", linked])
        os.replace(linked, target)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took over {COMPILE_TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compile the CPU kernels for every level.")
    parser.add_argument("--cache", type=Path, default=PREBUILT, help="folder to fill")
    prebuild(parser.parse_args().cache)
