"""One process of the plan: the running one and, after a crash, its successors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.logs import last_lines, last_message
from triptych.launch.plan import ProcessSpec


@dataclass(frozen=True, slots=True)
class BackOff:
    """How long to wait before a crashed process is started again."""

    first_s: float = 0.5
    longest_s: float = 30.0
    healthy_s: float = 60.0  # after a life that long, a crash counts as the first in a row

    def delay_s(self, failures: int) -> float:
        """`failures` in a row, from 1."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 30))


class Kept(ABC):
    """A process of the plan as its launcher knows it; `report` hears of every change of state."""

    def __init__(self, spec: ProcessSpec, report: Callable[[ProcessEvent], None]) -> None:
        self.spec = spec
        self.state = ProcessState.STARTING
        self.detail = ""
        self.restarts = 0
        self._report = report

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Also its process group's id; None while nothing runs."""

    @property
    def running(self) -> bool:
        return self.state not in (ProcessState.EXITED, ProcessState.STOPPED)

    @property
    def settled(self) -> bool:
        """Ready, or without a process that could become it."""
        return self.state is ProcessState.READY or not self.running

    def event(self) -> ProcessEvent:
        return ProcessEvent(self.spec.name, self.state, self.detail, self.restarts)

    def change(self, state: ProcessState, detail: str) -> None:
        if (state, detail) != (self.state, self.detail):
            self.state, self.detail = state, detail
            self._report(self.event())

    @abstractmethod
    def last_message(self) -> str:
        """The last line that it logged, as a person wants to read it; "" if none."""

    @abstractmethod
    def last_lines(self, count: int) -> list[str]: ...

    @abstractmethod
    async def spawn(self) -> None:
        """Raises OSError when the system cannot start it."""

    @abstractmethod
    async def keep(self) -> None:
        """Waits for the spawned process; starts it again when it ends. Returns when it may not."""

    @abstractmethod
    def terminate(self) -> None:
        """Asks it to drain and end; it will not be started again."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it and its helpers now; it will not be started again."""


class Child(Kept):
    """Runs `spec` as a child of this process, its output going to `log_file`.

    A child that ends by itself is started again for as long as `may_restart` says so. Each process
    leads a session and a process group of its own: the terminal's Ctrl-C does not reach it, and
    what it leaves behind is found by its group.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        log_file: Path,
        *,
        env: dict[str, str],  # on top of the plan's
        back_off: BackOff,
        may_restart: Callable[[], bool],
        report: Callable[[ProcessEvent], None],
    ) -> None:
        super().__init__(spec, report)
        self._log_file = log_file
        self._log_start = log_file.stat().st_size if log_file.exists() else 0
        self._env = {**spec.env, **env}
        self._back_off = back_off
        self._may_restart = may_restart
        self._process: asyncio.subprocess.Process | None = None
        self._told_to_end = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def last_message(self) -> str:
        return last_message(self._log_file, self._log_start)

    def last_lines(self, count: int) -> list[str]:
        return last_lines(self._log_file, count, self._log_start)

    async def spawn(self) -> None:
        # `env` replaces itself by the process: same pid, and no need to read our own environment.
        assignments = [f"{name}={value}" for name, value in self._env.items()]
        log = os.open(self._log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *("env", *assignments, *self.spec.argv),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)
        if self._told_to_end.is_set():
            self._signal(signal.SIGTERM)  # told while it was being started

    async def keep(self) -> None:
        failures, born = 0, time.monotonic()
        while True:
            ended = await self._wait()
            if self._told_to_end.is_set():
                return self.change(ProcessState.STOPPED, ended)
            if not self._may_restart():
                return self.change(ProcessState.EXITED, ended)
            failures = 1 if time.monotonic() - born > self._back_off.healthy_s else failures + 1
            delay_s = self._back_off.delay_s(failures)
            self.change(ProcessState.EXITED, f"{ended}; starts again in {delay_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_end.wait(), delay_s)
                return self.change(ProcessState.STOPPED, ended)
            self.restarts += 1
            born = time.monotonic()
            self.change(ProcessState.STARTING, "")
            with contextlib.suppress(OSError):  # no memory: _wait tells, the next back-off follows
                await self.spawn()

    def terminate(self) -> None:
        self._told_to_end.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._told_to_end.set()
        self._sweep()

    async def _wait(self) -> str:
        if self._process is None:
            return "could not be started"
        code = await self._process.wait()
        self._sweep()  # helpers that outlived their leader
        self._process = None
        return how_ended(code)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _sweep(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def how_ended(code: int) -> str:
    """A return code of a subprocess in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
