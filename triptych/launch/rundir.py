"""Where the processes of one cluster meet: config, sockets, logs and the router's URL."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from triptych.errors import ConfigError
from triptych.launch.base import LaunchError

_SUN_PATH = 107  # bytes of a unix socket's path, the final NUL not counted
_SUFFIX = ".nixl.sock"  # the longest that a process appends to its id


@dataclass(frozen=True, slots=True)
class RunDir:
    path: Path

    @property
    def config_file(self) -> Path:
        """The effective config; what every process is started with."""
        return self.path / "config.yaml"

    def router_file(self, name: str = "router") -> Path:
        """`{"url": …}`, written by that router when it listens."""
        return self.path / f"{name}.json"

    def socket(self, name: str) -> str:
        """gRPC address of process `name`."""
        return f"unix:{self.path}/{name}.sock"

    def log_file(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def check_socket(self, name: str) -> None:
        """Raises ConfigError when the path of process `name`'s socket would be too long."""
        longest = os.fsencode(self.path.absolute() / (name + _SUFFIX))
        if len(longest) > _SUN_PATH:
            over = len(longest) - _SUN_PATH
            raise ConfigError(
                f"--run-dir {self.path}: {over} bytes too long for unix sockets; use a shorter one"
            )

    def router_url(self, name: str = "router") -> str | None:
        """None: that router has not started to listen."""
        try:
            return str(json.loads(self.router_file(name).read_text())["url"])
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Makes the directory ours alone until the end of the block or of this process.

        Only our user may enter one that we create: the control plane's sockets lie here. Raises
        LaunchError when another cluster runs in it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / "logs").mkdir(exist_ok=True)
        with open(self.path / "lock", "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise LaunchError(f"{self.path}: another cluster runs in this directory") from error
            for left in self.path.glob("router*.json"):  # of an earlier run
                left.unlink()
            yield

    def write_config(self, text: str) -> None:
        """Atomic: a process that restarts meanwhile reads the old text or the new one."""
        draft = self.config_file.with_suffix(".new")
        draft.touch(mode=0o600)  # it may hold API keys, and the directory may be open to others
        draft.write_text(text)
        draft.replace(self.config_file)


@contextlib.contextmanager
def own_or_temporary(path: Path | None) -> Iterator[Path]:
    """`path` itself, or a temporary directory that is kept for its logs when the block fails."""
    if path is not None:
        yield path
        return
    temporary = Path(tempfile.mkdtemp(prefix="triptych-"))
    yield temporary
    shutil.rmtree(temporary, ignore_errors=True)
