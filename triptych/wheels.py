"""Downloads a wheel by running pip, so that a site's index, mirror, proxy and credentials apply."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)

_STALL_S = 300.0  # a download that grows by no byte for this long is given up
_POLL_S = 0.2


class WheelError(Exception):
    """pip failed; says what it said."""


class PipMissing(WheelError):
    """This interpreter has no pip; says how to get it."""


def download_wheel(requirement: str, total_bytes: int, scratch: Path, report: Progress) -> Path:
    """The wheel alone, no dependencies, somewhere in `scratch`; its content is not checked.

    `total_bytes` is for the reports, which end short of it: done is when this returns. When it
    raises, KeyboardInterrupt included, pip has ended. Raises WheelError.
    """
    log = scratch / "pip.log"
    with open(log, "wb") as output, _pip(requirement, scratch, output) as pip:
        try:
            _watch(pip, total_bytes, scratch, report)
        finally:
            pip.kill()  # no-op when it has ended
    if pip.returncode != 0:
        raise failure(requirement, log.read_text(errors="replace"))
    [wheel] = scratch.glob("*.whl")
    return wheel


def failure(requirement: str, output: str) -> WheelError:
    """What went wrong when pip ended with `output`."""
    if "No module named pip" in output:
        return PipMissing(
            f"{sys.executable} has none: run `python -m ensurepip` (or `uv pip install pip`) there"
        )
    last_lines = "\n  ".join(line for line in output.splitlines()[-6:] if line.strip())
    return WheelError(f"pip could not download {requirement}:\n  {last_lines}")


def _pip(requirement: str, scratch: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    options = "--no-deps --only-binary=:all: --no-cache-dir --no-input --progress-bar=off"
    return subprocess.Popen(
        # `env`: pip downloads into $TMPDIR first; that must be our file system and seen by _watch.
        # -P: a folder named pip in the working directory is not pip.
        ["env", f"TMPDIR={scratch}", sys.executable, "-P", "-m", "pip", "download"]
        + ["--disable-pip-version-check", *options.split(), "--dest", str(scratch), requirement],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def _watch(pip: subprocess.Popen[bytes], total_bytes: int, scratch: Path, report: Progress) -> None:
    done, grown_at = 0, time.monotonic()
    while True:
        try:
            pip.wait(_POLL_S)
            return
        except subprocess.TimeoutExpired:
            now, size = time.monotonic(), _wheel_size(scratch)
        if done < size < total_bytes:
            done, grown_at = size, now
            report(done, total_bytes)
        elif now - grown_at > _STALL_S:
            raise WheelError(f"no byte arrived for {_STALL_S:.0f} s; try again")


def _wheel_size(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in fnmatch.filter(names, "*.whl"):
            with contextlib.suppress(FileNotFoundError):  # pip moves it meanwhile
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest
