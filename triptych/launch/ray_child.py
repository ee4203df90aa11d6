"""A worker on some node of Ray, as the launcher keeps it: asked about, told to end, never more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.child import Kept
from triptych.launch.logs import plain_message
from triptych.launch.plan import ProcessSpec
from triptych.launch.ray_host import RayHost, Seat, Status
from triptych.launch.ray_places import Places, what_is_missing

_POLL_S = 0.5
_ANSWER_S = 5.0  # of an actor on a busy machine
_LINES = 20


class RayChild(Kept):
    """One actor in one bundle of its pool's placement group."""

    def __init__(
        self,
        spec: ProcessSpec,
        seat: Seat,
        places: Places,
        group: Any,  # ray.util.placement_group.PlacementGroup
        index: int,  # of the bundle
        *,
        may_restart: Callable[[], bool],
        report: Callable[[ProcessEvent], None],
    ) -> None:
        super().__init__(spec, report)
        self._seat = seat
        self._places = places
        self._group = group
        self._index = index
        self._may_restart = may_restart
        self._actor: Any = None
        self._known: Status | None = None  # what was heard last
        self._missing = ""  # why the actor is nowhere yet
        self._keeps_alive = ""  # the life that was told to go on for ever
        self._told_to_end = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """On its node."""
        return None if self._known is None else self._known.pid

    @property
    def node(self) -> str | None:
        """Ray's id of the node that it was seen on last."""
        return None if self._known is None else self._known.node

    def last_message(self) -> str:
        if self._known is None:
            return self._missing
        lines = [line for line in self._known.log if line.strip()]
        return plain_message(lines[-1]) if lines else ""

    def last_lines(self, count: int) -> list[str]:
        return [] if self._known is None else [*self._known.log[-count:]]

    async def spawn(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        each = {name: amount for name, amount in self._places.each.items() if name != "CPU"}
        host = ray.remote(RayHost).options(
            name=self.spec.name,
            num_cpus=self._places.each["CPU"],
            num_gpus=each.pop("GPU", 0.0),
            resources=each,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=self._index
            ),
            max_restarts=-1,
            max_concurrency=4,
        )
        self._actor = host.remote(self._seat)

    async def keep(self) -> None:
        while True:
            status = await self._ask()
            if status is None:
                self._miss()
            else:
                self._learn(status)
            if not self.running and (self._told_to_end.is_set() or not self._may_restart()):
                return self._let_go()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told_to_end.wait(), _POLL_S)
                await asyncio.sleep(_POLL_S / 10)  # while it ends

    def terminate(self) -> None:
        if self._actor is not None and not self._told_to_end.is_set():
            self._actor.terminate.remote()
        self._told_to_end.set()

    def kill(self) -> None:
        self._told_to_end.set()
        if self._actor is not None:
            self._actor.kill.remote()

    async def _ask(self) -> Status | None:
        """None: there is no actor to answer, now."""
        import ray

        try:
            status = await asyncio.wait_for(self._actor.status.remote(_LINES), _ANSWER_S)
        except (ray.exceptions.RayError, TimeoutError):
            return None
        assert isinstance(status, Status)
        return status

    def _miss(self) -> None:
        """Nobody answers: it is not placed yet, or its node is gone."""
        if self._told_to_end.is_set():
            self.change(ProcessState.STOPPED, "its node of Ray does not answer")
        elif self._known is None:
            self._missing = what_is_missing(self._places, _nodes())
        elif self.running:
            node = self._known.node[:8]
            self.change(ProcessState.EXITED, f"was lost with node {node}; starts again elsewhere")

    def _learn(self, status: Status) -> None:
        before, self._known = self._known, status
        if self._may_restart() and self._keeps_alive != status.life.split("/")[0]:
            self._actor.keep_alive.remote()
            self._keeps_alive = status.life.split("/")[0]
        if before is not None and before.life != status.life:
            self.restarts += 1
            self.change(ProcessState.STARTING, "")
        if status.state in (ProcessState.EXITED, ProcessState.STOPPED):
            self.change(status.state, status.detail)

    def _let_go(self) -> None:
        """The worker has ended; so does the actor."""
        import ray

        ray.kill(self._actor)


def _nodes() -> Sequence[Mapping[str, float]]:
    """What each living node has, taken or not."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
