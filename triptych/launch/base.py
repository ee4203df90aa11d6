"""The seam of launching: start the processes of one cluster, watch them, stop them.

`LocalLauncher` runs them as child processes of this one, `RayLauncher` has Ray find places for the
workers. Both implement the same three verbs and take the same plan.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from triptych.errors import TriptychError


class LaunchError(TriptychError):
    """A cluster could not be started; ends with the last lines of the guilty process's log."""


class ProcessState(enum.StrEnum):
    STARTING = "starting"  # the process exists, it has not said anything yet
    LOADING = "loading"  # it logs, but serves nothing yet
    READY = "ready"  # the router answers; a worker is attached to it
    EXITED = "exited"  # ended without being told to
    STOPPED = "stopped"  # ended because it was told to


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """One process changed its state, or said something new while it is loading."""

    name: str
    state: ProcessState
    detail: str = ""  # last log line while loading; URL of a ready router; how it ended
    restarts: int = 0  # of this process, since the launcher started


class Launcher(Protocol):
    async def start(self) -> None:
        """Starts every process; returns when they run, not when they are ready.

        Raises LaunchError, and then nothing is left running.
        """

    async def stop(self) -> None:
        """Drains and ends every process within a bound. Idempotent; safe while starting."""

    def watch(self) -> AsyncIterator[ProcessEvent]:
        """The state of every process now, then each change. Ends when the cluster has stopped."""
