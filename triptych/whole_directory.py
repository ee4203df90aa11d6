"""A directory that is there whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from triptych.errors import ConfigError


@contextlib.contextmanager
def whole_directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty directory beside `target` that gets its name when the block ends well.

    When it ends otherwise, nothing is left of it; a killed process leaves `.<name>.part`, which
    the next one removes. `overwrite` lets it take the place of a directory with a config.json, and
    of no other. Raises ConfigError for a target that is taken or being written by somebody else.
    """
    check_target(target, overwrite=overwrite)
    target = Path(os.path.abspath(target))
    scratch = target.with_name(f".{target.name}.part")
    scratch.mkdir(parents=True, exist_ok=True)
    lock = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(lock, target)
        try:
            _empty(scratch)
            yield scratch
            _rename(scratch, target, overwrite)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raises ConfigError when `whole_directory` would refuse it."""
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ConfigError(f"{target}: exists; choose another name, or give --overwrite")
    if target.is_symlink() or not (target / "config.json").is_file():
        raise ConfigError(f"{target}: is no model directory, so --overwrite does not replace it")


def _lock(handle: int, target: Path) -> None:
    # The kernel drops the lock with its holder, however that one ended.
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{target}: another process is writing it") from error


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _rename(scratch: Path, target: Path, overwrite: bool) -> None:
    check_target(target, overwrite=overwrite)  # somebody may have come first
    if not target.exists():
        scratch.rename(target)
        return
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    try:
        scratch.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old)
