"""Clusters of tiny scripted processes: they say that they are ready by a file, not by a router."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from triptych.config import ClusterConfig
from triptych.launch.child import BackOff
from triptych.launch.local import LocalLauncher
from triptych.launch.plan import ProcessSpec
from triptych.launch.ready import ClusterView

# Says hello, is ready, and ends when told to, leaving a line in the journal.
OBEDIENT = """
import os, pathlib, signal, sys
place, name = pathlib.Path(sys.argv[1]), sys.argv[2]

def end(*_):
    with open(place / "journal", "a") as journal:
        journal.write(f"{name} told to end\\n")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
print("loading layer 1/2")
(place / f"{name}.draft").write_text(str(os.getpid()))
(place / f"{name}.draft").rename(place / f"{name}.pid")
while True:
    signal.pause()
"""

# Is ready, and does not end when told to.
STUBBORN = OBEDIENT.replace("    sys.exit(0)\n", "")


class FileProbe:
    """A process is attached once its pid file is there; the router listens once it has one."""

    def __init__(self, place: Path) -> None:
        self._place = place

    async def look(self) -> ClusterView:
        names = frozenset(path.stem for path in self._place.glob("*.pid"))
        urls = {"router": "http://127.0.0.1:4711"} if "router" in names else {}
        return ClusterView(urls, bool(urls), names - {"router"})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def script() -> dict[str, str]:
    return {"obedient": OBEDIENT, "stubborn": STUBBORN}


@pytest.fixture
def scripted(run_dir: Path) -> Callable[..., ProcessSpec]:
    """scripted(name, source) -> the spec of a process that runs `source` with run dir and name."""

    def spec(name: str, source: str = OBEDIENT) -> ProcessSpec:
        role: Literal["router", "decode"] = "router" if name == "router" else "decode"
        argv = (sys.executable, "-I", "-S", "-u", "-c", source, str(run_dir), name)
        return ProcessSpec(name, role, argv, {}, "listening" if role == "router" else "attached")

    return spec


@pytest.fixture
def launcher(run_dir: Path) -> Callable[..., LocalLauncher]:
    """launcher(*specs) -> a LocalLauncher of them that restarts at once and drains briefly."""

    def build(*specs: ProcessSpec, drain_s: float = 5.0, margin_s: float = 5.0) -> LocalLauncher:
        return LocalLauncher(
            ClusterConfig(drain_s=drain_s),
            run_dir,
            specs=specs,
            probe=FileProbe(run_dir),
            back_off=BackOff(first_s=0.01),
            margin_s=margin_s,
        )

    return build
