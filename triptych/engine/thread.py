"""The thread that a worker's loop runs on, and the way other threads talk to it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

Command = Callable[[], None]


class StepThread:
    """Calls `step` again and again while it finds work; sleeps on the inbox otherwise.

    Whatever other threads want from the loop they post as commands, which run between two steps:
    the loop's state needs no locks. An exception in a step is not survivable (the batch is half
    done): `on_failure` is called once and the thread ends.
    """

    def __init__(
        self, step: Callable[[], bool], on_failure: Callable[[BaseException], None], name: str
    ) -> None:
        self._step = step
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopping = False
        self._began_at: float | None = None  # monotonic seconds; None: it sleeps
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Runs `command` on the loop's thread before its next step."""
        self._inbox.put(command)

    @property
    def step_s(self) -> float:
        """Age of the step under way, commands before it included; 0: none is. From any thread."""
        began_at = self._began_at
        return 0.0 if began_at is None else time.monotonic() - began_at

    def stop(self) -> None:
        """Ends after the step under way; commands posted before are still run."""
        self.post(self._leave)
        self._thread.join()

    def _leave(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        idle = True
        try:
            while not self._stopping:
                self._began_at = None if idle else time.monotonic()
                self._take_inbox(wait=idle)
                idle = not self._step()
        except BaseException as error:
            log.critical("the engine loop died", exc_info=error)
            self._on_failure(error)

    def _take_inbox(self, *, wait: bool) -> None:
        try:
            command = self._inbox.get(block=wait)
            if wait:
                self._began_at = time.monotonic()
            command()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return
