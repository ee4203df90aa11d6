"""One pod: its namespaces and volumes, its containers in order, and how it ends."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from triptych.testing.hosts import Host
from triptych.testing.kubelet.container import Container, Node, Surroundings
from triptych.testing.kubelet.variables import Identity, Manifest, Stored
from triptych.testing.kubelet.volumes import VolumeMaker


@dataclass(slots=True, eq=False)
class Pod:
    """`changed` is called when it became ready or not, and when it is gone."""

    identity: Identity
    spec: Manifest
    stored: Stored
    node: Node
    changed: Callable[[], None]
    events: list[str] = field(default_factory=list)  # what happened to it, for people
    stopping: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _containers: list[Container] = field(default_factory=list)
    _host: Host | None = None
    # It has its namespaces, or never will.
    _placed: asyncio.Event = field(default_factory=asyncio.Event)
    _life: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._containers = [self._container(spec) for spec in self.spec["containers"]]
        self._life = asyncio.create_task(self._live(), name=self.identity.name)
        self._life.add_done_callback(lambda _: self.changed())  # it may have failed

    @property
    def ready(self) -> bool:
        return all(each.ready for each in self._containers)

    @property
    def failure(self) -> BaseException | None:
        """Why it could never start."""
        if self._life is None or not self._life.done() or self._life.cancelled():
            return None
        return self._life.exception()

    @property
    def address(self) -> str:
        """Empty before it has one."""
        return self.identity.address

    @property
    def restarts(self) -> int:
        return sum(each.restarts for each in self._containers)

    @property
    def cut_short(self) -> bool:
        """A container did not end by itself within its grace period."""
        return any(each.cut_short for each in self._containers)

    @property
    def exit_code(self) -> int:
        """The worst of its containers'."""
        return max(each.exit_code or 0 for each in self._containers)

    async def finished(self) -> int:
        """Waits until all containers ended for good (restartPolicy); `exit_code`."""
        assert self._life is not None, "not started"
        await self._life
        return self.exit_code

    def log(self) -> str:
        """What its containers said, all starts of them."""
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    async def stop(self, grace_s: float | None = None) -> None:
        """Deletes it; 0 is `kubectl delete --force`: every process is killed. Idempotent."""
        if self.stopping:
            if grace_s == 0 and self._host is not None:
                await self._host.end()
            await self.gone.wait()
            return
        self.stopping = True
        self.changed()
        for container in self._containers:
            container.stopping = True
        if grace_s is None:
            grace_s = float(self.spec.get("terminationGracePeriodSeconds", 30))
        if grace_s:
            await asyncio.gather(*(each.terminate(grace_s) for each in self._containers))
        if self._life is not None:
            await self._placed.wait()
            self._life.cancel()
            await asyncio.wait({self._life})
        if self._host is not None:
            await self._host.end()
        _keep_logs(self._folder)
        self._note("gone")
        self.gone.set()
        self.changed()

    async def _live(self) -> None:
        around = await self._settle_in()
        self.changed()
        for spec in self.spec.get("initContainers") or ():
            await self._container(spec).keep(around, policy="OnFailure")
        policy = self.spec.get("restartPolicy", "Always")
        async with asyncio.TaskGroup() as group:
            for container in self._containers:
                group.create_task(container.keep(around, policy))

    async def _settle_in(self) -> Surroundings:
        """Raises HostError, and KeyError for a volume that cannot be made."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)  # logs of one of the same name
            self._host = await self.node.network.add_host(self.identity.name)
        finally:
            self._placed.set()
        self.identity = replace(self.identity, address=self._host.address)
        hosts = f"127.0.0.1 localhost\n{self.address} {self.identity.name}\n"
        (self._folder / "hosts").write_text(hosts)
        group = (self.spec.get("securityContext") or {}).get("fsGroup")
        maker = VolumeMaker(self._folder, self.stored, self.node.claims, group)
        volumes = maker.make(self.spec.get("volumes") or ())
        return Surroundings(
            self._host, self.identity, self.spec, self.stored, volumes, self.node, self._folder
        )

    def _container(self, spec: Manifest) -> Container:
        return Container(spec, self.changed, self._note)

    @property
    def _folder(self) -> Path:
        return self.node.state / self.identity.name

    def _note(self, what: str) -> None:
        self.events.append(f"{time.strftime('%H:%M:%S')} {self.identity.name}: {what}")


def _keep_logs(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".log":
            path.unlink()
