"""One pod: its namespaces, its containers, their probes, how it ends. The kubelet's part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from triptych.testing.hosts import Host, Network, child_of
from triptych.testing.kubelet.probes import Probe, Tally, Verdict, back_off_s, look, port_number
from triptych.testing.kubelet.variables import (
    Identity,
    Manifest,
    Stored,
    command_line,
    environment,
    expand,
)
from triptych.testing.kubelet.volumes import (
    Image,
    VolumeMaker,
    image_mounts,
    mounts_of,
    privileges,
    root_script,
)

_DEFAULT_GRACE_S = 30


@dataclass(frozen=True, slots=True)
class Node:
    """What all pods of a cluster share."""

    network: Network
    image: Image
    state: Path  # pods' files and logs
    resolver: Path  # resolv.conf
    claims: Mapping[str, Path]


@dataclass(slots=True)
class _Container:
    spec: Manifest
    ready: bool = False
    restarts: int = 0
    process: Process | None = None
    exit_code: int | None = None

    @property
    def pid(self) -> int | None:
        """Of the program, as seen from here."""
        running = self.process is not None and self.process.returncode is None
        return child_of(self.process) if self.process is not None and running else None


@dataclass(slots=True)
class Pod:
    """`changed` is called when it became ready or not, and when it is gone."""

    identity: Identity
    spec: Manifest
    stored: Stored
    node: Node
    changed: Callable[[], None]
    events: list[str] = field(default_factory=list)  # what happened to it, for people
    stopping: bool = False
    cut_short: bool = False  # it did not end by itself within its grace period
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _containers: list[_Container] = field(default_factory=list)
    _host: Host | None = None
    _volumes: dict[str, Path | int] = field(default_factory=dict)
    _placed: asyncio.Event = field(
        default_factory=asyncio.Event
    )  # it has its namespaces, or never will
    _life: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._containers = [_Container(spec) for spec in self.spec["containers"]]
        self._life = asyncio.create_task(self._live(), name=self.identity.name)

    @property
    def ready(self) -> bool:
        return all(each.ready for each in self._containers)

    @property
    def failure(self) -> BaseException | None:
        """Why it could never start."""
        done = self._life is not None and self._life.done() and not self._life.cancelled()
        return self._life.exception() if self._life is not None and done else None

    @property
    def address(self) -> str:
        """Empty before it has one."""
        return self.identity.address

    @property
    def restarts(self) -> int:
        return sum(each.restarts for each in self._containers)

    async def finished(self) -> int:
        """Waits until all containers ended for good (restartPolicy); the worst exit code."""
        assert self._life is not None, "not started"
        await self._life
        return max(each.exit_code or 0 for each in self._containers)

    def log(self, container: str = "") -> str:
        """What its containers said, all starts of them."""
        files = sorted(self._folder.glob(f"{container or '*'}.log"))
        return "\n".join(file.read_text(errors="replace") for file in files)

    @property
    def _folder(self) -> Path:
        return self.node.state / self.identity.name

    @property
    def _inside(self) -> Host:
        assert self._host is not None, "the pod has its namespaces by now"
        return self._host

    async def _live(self) -> None:
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
        self._volumes = maker.make(self.spec.get("volumes") or ())
        self.changed()
        for spec in self.spec.get("initContainers") or ():
            await self._keep(_Container(spec), policy="OnFailure")
        policy = self.spec.get("restartPolicy", "Always")
        async with asyncio.TaskGroup() as group_of_tasks:
            for container in self._containers:
                group_of_tasks.create_task(self._keep(container, policy))

    async def _keep(self, container: _Container, policy: str) -> None:
        """Runs it, again and again if the policy says so."""
        name, probes = container.spec["name"], _probes_of(container.spec)
        while not self.stopping:
            await asyncio.sleep(back_off_s(container.restarts))
            container.process = await self._run(container.spec)
            watch = asyncio.create_task(self._watch(container, probes))
            try:
                container.exit_code = await container.process.wait()
            finally:
                watch.cancel()
                await asyncio.wait({watch})
            self._set_ready(container, False)
            self._note(f"{name} ended with {container.exit_code}")
            if policy == "Never" or (policy == "OnFailure" and container.exit_code == 0):
                return
            container.restarts += 1

    async def _run(self, spec: Manifest) -> Process:
        env = {"HOSTNAME": self.identity.name, **self.node.image.env}
        env |= environment(spec, self.identity, self.stored)
        root = self._folder / f"{spec['name']}.root"
        root.mkdir(exist_ok=True)
        mounts = image_mounts(self.node.image, self._folder / "hosts", self.node.resolver)
        script = root_script(
            root,
            [*mounts, *mounts_of(spec, self._volumes)],
            read_only=(spec.get("securityContext") or {}).get("readOnlyRootFilesystem", False),
            then=[
                *privileges(self.spec, spec),
                *("env", f"--chdir={spec.get('workingDir', '/')}"),
                *command_line(spec, env),
            ],
        )
        with (self._folder / f"{spec['name']}.log").open("ab") as log:
            command = ["unshare", "--mount", "sh", "-euc", script]
            return await self._inside.start(command, env=env, log=log)

    async def _watch(self, container: _Container, probes: Mapping[str, Probe]) -> None:
        """Probes one start of a container."""
        if "startup" in probes and not await self._started(container, probes["startup"]):
            return
        if "readiness" not in probes:
            self._set_ready(container, True)
        async with asyncio.TaskGroup() as group:
            if "readiness" in probes:
                group.create_task(self._watch_ready(container, probes["readiness"]))
            if "liveness" in probes:
                group.create_task(self._watch_alive(container, probes["liveness"]))

    async def _started(self, container: _Container, probe: Probe) -> bool:
        async for verdict in self._verdicts(container, probe):
            if verdict is Verdict.GOOD:
                return True
            if verdict is Verdict.BAD:
                await self._put_down(container, "did not start in time")
                return False
        return False

    async def _watch_ready(self, container: _Container, probe: Probe) -> None:
        async for verdict in self._verdicts(container, probe):
            self._set_ready(container, verdict is Verdict.GOOD)

    async def _watch_alive(self, container: _Container, probe: Probe) -> None:
        async for verdict in self._verdicts(container, probe):
            if verdict is Verdict.BAD:
                await self._put_down(container, "is not alive")
                return

    async def _verdicts(self, container: _Container, probe: Probe) -> AsyncIterator[Verdict]:
        tally = Tally(probe)
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            yield tally.add(await self._look(container, probe))
            await asyncio.sleep(probe.period_s)

    async def _look(self, container: _Container, probe: Probe) -> bool:
        if "exec" in probe.action:
            return await self._exec(container, probe.action["exec"]["command"], probe.timeout_s)
        return await look(probe, container.spec, self.address)

    async def _exec(self, container: _Container, command: list[str], timeout_s: float) -> bool:
        pid = container.pid
        if pid is None:
            return False
        env = environment(container.spec, self.identity, self.stored)
        spaces = ("--net", "--uts", "--ipc", "--pid", "--mount", "--root")
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--target={pid}", *spaces, "--",
            *privileges(self.spec, container.spec),
            *(expand(each, env) for each in command),
            env={**self.node.image.env, **env},
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait() == 0
        except TimeoutError:
            process.kill()
            return False

    async def _put_down(self, container: _Container, why: str) -> None:
        """What fails a probe is asked, waited for, killed; `_keep` starts it again."""
        self._note(f"{container.spec['name']} {why}")
        self._set_ready(container, False)
        grace_s = self.spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)
        await self._terminate(container, grace_s)

    async def _terminate(self, container: _Container, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when `grace_s` from now is over."""
        process = container.process
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._pre_stop(container)
                _send(container, signal.SIGTERM)
                container.exit_code = await process.wait()
        except TimeoutError:
            self.cut_short = True
            self._note(f"{container.spec['name']} was killed after {grace_s:.0f} s of grace")
            _send(container, signal.SIGKILL)
            await process.wait()

    async def _pre_stop(self, container: _Container) -> None:
        hook = (container.spec.get("lifecycle") or {}).get("preStop") or {}
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            await self._exec(container, hook["exec"]["command"], float("inf"))
        elif "httpGet" in hook:
            await look(Probe(hook, timeout_s=60), container.spec, self.address)

    async def stop(self, grace_s: float | None = None) -> None:
        """Deletes it; 0 is `kubectl delete --force`: every process is killed. Idempotent."""
        if self.stopping:
            await self.gone.wait()
            return
        self.stopping = True
        self.changed()
        if grace_s is None:
            grace_s = self.spec.get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S)
        if grace_s:
            await asyncio.gather(*(self._terminate(each, grace_s) for each in self._containers))
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

    def _set_ready(self, container: _Container, ready: bool) -> None:
        if ready != container.ready:
            container.ready = ready
            self._note(f"{container.spec['name']} is {'' if ready else 'not '}ready")
            self.changed()

    def _note(self, what: str) -> None:
        self.events.append(f"{time.strftime('%H:%M:%S')} {self.identity.name}: {what}")


def _probes_of(container: Manifest) -> dict[str, Probe]:
    """Raises KeyError."""
    kinds = [kind for kind in ("startup", "readiness", "liveness") if f"{kind}Probe" in container]
    for kind in kinds:
        action = container[f"{kind}Probe"]
        for each in ("httpGet", "tcpSocket"):
            if each in action:
                port_number(action[each]["port"], container)
    return {kind: Probe.of(container[f"{kind}Probe"]) for kind in kinds}


def _keep_logs(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".log":
            path.unlink()


def _send(container: _Container, number: signal.Signals) -> None:
    pid = container.pid
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
