"""Runs one worker process on a node of Ray: the body of an actor.

The actor starts and watches, as the local launcher does with its children; no token and no block
ever passes it, and the worker knows nothing of Ray. It acts by itself: when Ray builds it anew on
another node, the worker is started there without anybody's order.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from triptych.config import ClusterConfig, dump_config
from triptych.launch import guard
from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.child import BackOff, Child
from triptych.launch.commands.models import ensure_models
from triptych.launch.console import open_console
from triptych.launch.guarding import guarded
from triptych.launch.logs import plain_message
from triptych.launch.plan import ProcessSpec, plan
from triptych.launch.rundir import RunDir

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """What a node has to know to run one worker."""

    config: ClusterConfig
    name: str  # of the process, as planned
    registries: tuple[str, ...]  # gRPC targets of the routers
    back_off: BackOff
    margin_s: float  # to end in, on top of config.drain_s


@dataclass(frozen=True, slots=True)
class Status:
    """What an actor says of its process."""

    life: str  # random: of this actor and this process
    state: ProcessState
    detail: str
    pid: int | None
    node: str  # Ray's id
    log: tuple[str, ...]  # the last lines


class RayHost:
    """An actor. Its methods return at once; a thread with an event loop has the process."""

    def __init__(self, seat: Seat) -> None:
        import ray

        context = ray.get_runtime_context()
        self._seat = seat
        self._node = context.get_node_id()
        self._address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._mark = secrets.token_hex(8)
        # In place of one whose node was lost: the cluster is long up.
        self._may_restart = bool(context.was_current_actor_reconstructed)
        self._child: Child | None = None
        self._told_to_end = False
        self._ended: tuple[ProcessState, str] | None = None
        self._last_words: list[str] = []  # of its log, when the folder is gone
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._live, name="process", daemon=True).start()

    def status(self, lines: int) -> Status:
        child, ended = self._child, self._ended
        state, detail, log = ProcessState.STARTING, "", self._last_words
        if child is not None:
            state, detail, log = child.state, child.detail, child.last_lines(lines)
        if ended is not None:
            (state, detail), log = ended, self._last_words
        return Status(
            life=f"{self._mark}/{0 if child is None else child.restarts}",
            state=state,
            detail=detail,
            pid=None if child is None else child.pid,
            node=self._node,
            log=tuple(log[-lines:]),
        )

    def keep_alive(self) -> None:
        """From now on the process is started again when it ends."""
        self._may_restart = True

    def terminate(self) -> None:
        self._told_to_end = True
        if self._child is not None:
            self._loop.call_soon_threadsafe(self._child.terminate)

    def kill(self) -> None:
        self._told_to_end = True
        if self._child is not None:
            self._loop.call_soon_threadsafe(self._child.kill)

    def _live(self) -> None:
        try:
            self._loop.run_until_complete(self._run())
        except Exception as error:
            _log.exception("the worker cannot be run")
            self._ended = ProcessState.EXITED, f"cannot be run: {error}"

    async def _run(self) -> None:
        config = self._seat.config
        await asyncio.to_thread(ensure_models, config, open_console())
        with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
            place = RunDir(Path(folder))
            with place.claim():
                place.write_config(dump_config(config))
                grace_s = config.drain_s + self._seat.margin_s
                # Ends the worker when this actor is killed, or its node's raylet dies.
                async with guarded(self._mark, grace_s, place.log_file("guard")):
                    await self._keep(self._child_of(config, place))

    async def _keep(self, child: Child) -> None:
        self._child = child
        if self._told_to_end:
            child.terminate()
        await child.spawn()
        await child.keep()
        self._last_words = child.last_lines(100)
        self._ended = child.state, child.detail

    def _child_of(self, config: ClusterConfig, place: RunDir) -> Child:
        return Child(
            self._spec(config, place),
            place.log_file(self._seat.name),
            env={guard.MARK_NAME: self._mark},
            back_off=self._seat.back_off,
            may_restart=lambda: self._may_restart,
            report=_heard,
        )

    def _spec(self, config: ClusterConfig, place: RunDir) -> ProcessSpec:
        """As planned with this node's cores; others reach the worker at the node's address."""
        [spec] = [spec for spec in plan(config, place.path) if spec.name == self._seat.name]
        where = ["--host", self._address, "--domain", self._node]
        for target in self._seat.registries:
            where += ["--registry", target]
        return ProcessSpec(spec.name, spec.role, (*spec.argv, *where), spec.env, spec.ready)


def _heard(event: ProcessEvent) -> None:
    """The launcher asks for the state; here it goes to the actor's log."""
    _log.info("%s %s %s", event.name, event.state, plain_message(event.detail))
