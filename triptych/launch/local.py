"""A cluster as child processes of this one: what `triptych up` and the cluster tests run.

- Every process leads a process group of its own and logs to `<run-dir>/logs/<name>.log`.
- While the cluster starts, a process that ends is a LaunchError with the end of its log.
  Afterwards it is started again, with a growing back-off; the restarts are counted and reported.
- Stopping goes from the clients inwards: the router first, so that it can finish its streams while
  all workers still work, then the workers. Who does not end in time is killed.
- If this process is killed, `guard` ends the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import httpx

from triptych.config import ClusterConfig, dump_config
from triptych.launch import guard
from triptych.launch.base import LaunchError, ProcessEvent, ProcessState
from triptych.launch.child import BackOff, Child, Kept
from triptych.launch.guarding import guarded
from triptych.launch.logs import explain_delay, explain_end
from triptych.launch.plan import ProcessSpec, plan, with_port
from triptych.launch.ready import ClusterView, Probe, RouterProbe, judge
from triptych.launch.rundir import RunDir

_POLL_S = 0.1  # while something is not ready
_TAIL_LINES = 20

_log = logging.getLogger(__name__)


class LocalLauncher:
    """Implements Launcher. One event loop, one start, one stop; `async with` does both.

    `specs`, `probe` and `back_off` have their natural defaults: the plan of `config`, its
    router, and half a second that doubles. `margin_s` is granted on top of `config.drain_s`
    before a process is killed.
    """

    def __init__(
        self,
        config: ClusterConfig,
        run_dir: Path,
        *,
        specs: Sequence[ProcessSpec] | None = None,
        probe: Probe | None = None,
        back_off: BackOff | None = None,
        margin_s: float = 5.0,
    ) -> None:
        self.run_dir = RunDir(run_dir.absolute())
        self.specs = list(specs if specs is not None else plan(config, self.run_dir.path))
        self._config = config
        self._probe = probe
        self._back_off = back_off or BackOff()
        self._margin_s = margin_s
        self._children: list[Kept] = []
        self._keepers: dict[Kept, asyncio.Task[None]] = {}
        self._resources = contextlib.AsyncExitStack()
        self._watchers: set[asyncio.Queue[ProcessEvent | None]] = set()
        self._unsettled = asyncio.Event()  # something may run and not be ready
        self._attendant: asyncio.Task[None] | None = None
        # How the start-up went: the URL, or the process that ended, or None when it was stopped.
        self._outcome: asyncio.Future[str | ProcessEvent | None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        try:
            await self._start()
        except OSError as error:
            await self.stop()
            raise LaunchError(f"{self.run_dir.path}: cannot start a cluster: {error}") from error
        except BaseException:
            await self.stop()
            raise

    async def wait_ready(self, timeout_s: float = 600.0) -> str:
        """The (first) router's URL, once every process was ready.

        Raises LaunchError with the end of its log when a process ends before, or when time is up.
        """
        assert self._outcome is not None, "started first"
        try:
            outcome = await asyncio.wait_for(asyncio.shield(self._outcome), timeout_s)
        except TimeoutError:
            states = [child.event() for child in self._children]
            logs = self.run_dir.log_file("*")
            raise LaunchError(explain_delay(states, timeout_s, logs)) from None
        if isinstance(outcome, ProcessEvent):
            child = next(c for c in self._children if c.spec.name == outcome.name)
            raise LaunchError(explain_end(outcome, child.last_lines(_TAIL_LINES)))
        if outcome is None:
            raise LaunchError("the cluster was stopped before it was ready")
        return outcome

    async def watch(self) -> AsyncGenerator[ProcessEvent, None]:
        queue: asyncio.Queue[ProcessEvent | None] = asyncio.Queue()
        for child in self._children:
            queue.put_nowait(child.event())
        if self._stopping is not None and self._stopping.done():
            queue.put_nowait(None)
        self._watchers.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._watchers.discard(queue)

    async def stop(self) -> None:
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._wind_down(), name="stop the cluster")
        await asyncio.shield(self._stopping)

    def kill(self) -> None:
        """Ends every process now: for a second Ctrl-C. A `stop` under way then returns at once."""
        for child in self._children:
            child.kill()

    def pid(self, name: str) -> int | None:
        """Of the running process of that name; None between two lives."""
        return next(child.pid for child in self._children if child.spec.name == name)

    @property
    def _started_up(self) -> bool:
        outcome = self._outcome
        if outcome is None or not outcome.done() or outcome.exception() is not None:
            return False
        return isinstance(outcome.result(), str)

    async def _start(self) -> None:
        self._outcome = asyncio.get_running_loop().create_future()
        self._resources.enter_context(self.run_dir.claim())
        self.run_dir.write_config(dump_config(self._config))
        mark = secrets.token_hex(8)
        grace_s = self._config.drain_s + self._margin_s
        log_file = self.run_dir.log_file("guard")
        await self._resources.enter_async_context(guarded(mark, grace_s, log_file))
        if self._probe is None:
            client = await self._resources.enter_async_context(httpx.AsyncClient(trust_env=False))
            self._probe = RouterProbe(self.run_dir, client, self._config.router.names)
        await self._prepare()
        for spec in self.specs:
            await self._start_child(self._make_child(spec, mark))
        self._unsettled.set()
        self._attendant = asyncio.create_task(self._attend(self._probe), name="attend the cluster")
        self._attendant.add_done_callback(self._pass_on)

    async def _prepare(self) -> None:
        """What has to be there before the first process."""

    def _make_child(self, spec: ProcessSpec, mark: str) -> Kept:
        return Child(
            spec,
            self.run_dir.log_file(spec.name),
            env={guard.MARK_NAME: mark},
            back_off=self._back_off,
            may_restart=lambda: self._started_up,
            report=self._hear,
        )

    async def _start_child(self, child: Kept) -> None:
        self._children.append(child)
        await child.spawn()
        self._keepers[child] = asyncio.create_task(child.keep(), name=f"keep {child.spec.name}")

    def _hear(self, event: ProcessEvent) -> None:
        assert self._outcome is not None, "there are children"
        if event.state is ProcessState.EXITED:
            _log.info("%s %s", event.name, event.detail)
            if not self._outcome.done():
                self._outcome.set_result(event)
        if event.state is ProcessState.STARTING:
            self._unsettled.set()
        for queue in self._watchers:
            queue.put_nowait(event)

    async def _attend(self, probe: Probe) -> None:
        """Tells each running process's state, for as long as one is not ready."""
        while True:
            await self._unsettled.wait()
            before = {child: child.restarts for child in self._children if child.running}
            view = await probe.look()
            for child, restarts in before.items():
                if child.running and child.restarts == restarts:  # what we saw is about this one
                    spec = child.spec
                    child.change(*judge(spec.name, spec.ready, view, child.last_message()))
            if view.ready and all(child.settled for child in self._children):
                self._unsettled.clear()
                self._conclude(view)
            await asyncio.sleep(_POLL_S)

    def _pass_on(self, attendant: asyncio.Task[None]) -> None:
        """A bug in the attendant must not look like a cluster that takes long to start."""
        error = None if attendant.cancelled() else attendant.exception()
        if error is not None:
            _log.error("nobody watches the cluster's state any more", exc_info=error)
            if self._outcome is not None and not self._outcome.done():
                self._outcome.set_exception(error)

    def _conclude(self, view: ClusterView) -> None:
        assert self._outcome is not None, "it was started"
        if self._outcome.done():
            return
        for child in self._children:
            port = urlsplit(view.urls.get(child.spec.name, "")).port
            if port is not None:  # a router that crashes must come back under the same URL
                child.spec = with_port(child.spec, port)
        self._outcome.set_result(view.urls[self._config.router.names[0]])

    async def _wind_down(self) -> None:
        if self._attendant is not None:
            self._attendant.cancel()
            await asyncio.wait([self._attendant])
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(None)
        deadline = time.monotonic() + self._config.drain_s + self._margin_s
        await self._end([c for c in self._children if c.spec.role == "router"], deadline)
        deadline = max(deadline, time.monotonic() + self._margin_s)
        await self._end([c for c in self._children if c.spec.role != "router"], deadline)
        await self._resources.aclose()
        for queue in self._watchers:
            queue.put_nowait(None)

    async def _end(self, children: Sequence[Kept], deadline: float) -> None:
        for child in children:
            child.terminate()
        keepers = {self._keepers[child]: child for child in children if child in self._keepers}
        if not keepers:
            return
        _, late = await asyncio.wait(keepers, timeout=max(0.0, deadline - time.monotonic()))
        for keeper in late:
            _log.warning("%s did not end in time and is killed", keepers[keeper].spec.name)
            keepers[keeper].kill()
        await asyncio.gather(*keepers)
