"""One container: started, probed, started again, asked to end and killed. The kubelet's part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
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
    image_mounts,
    mounts_of,
    privileges,
    root_script,
)


@dataclass(frozen=True, slots=True)
class Node:
    """What all pods of a cluster share."""

    network: Network
    image: Image
    state: Path  # pods' files and logs
    resolver: Path  # resolv.conf
    claims: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all containers of a pod share, once it has its namespaces and volumes."""

    host: Host
    identity: Identity
    pod: Manifest  # its spec
    stored: Stored
    volumes: Mapping[str, Path | int]
    node: Node
    folder: Path

    @property
    def grace_s(self) -> float:
        return float(self.pod.get("terminationGracePeriodSeconds", 30))


@dataclass(slots=True)
class Container:
    """`changed` is called when it became ready or not, `note` is told what happens to it."""

    spec: Manifest
    changed: Callable[[], None]
    note: Callable[[str], None]
    ready: bool = False
    restarts: int = 0
    exit_code: int | None = None  # of the last time it ended
    stopping: bool = False  # it is not started again
    cut_short: bool = False  # once it did not end by itself within its grace period
    _around: Surroundings | None = None
    _process: Process | None = None

    async def keep(self, around: Surroundings, policy: str) -> None:
        """Runs it, again and again if the policy says so. Raises KeyError for unknown probes."""
        self._around = around
        probes = probes_of(self.spec)
        while not self.stopping:
            await asyncio.sleep(back_off_s(self.restarts))
            self._process = await self._run(around)
            watch = asyncio.create_task(self._watch(probes))
            try:
                self.exit_code = await self._process.wait()
            finally:
                watch.cancel()
                await asyncio.wait({watch})
            self._set_ready(False)
            self._note(f"ended with {self.exit_code}")
            if policy == "Never" or (policy == "OnFailure" and self.exit_code == 0):
                return
            self.restarts += 1

    async def terminate(self, grace_s: float) -> None:
        """preStop, SIGTERM, and SIGKILL when `grace_s` from now is over."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            async with asyncio.timeout(grace_s):
                await self._pre_stop()
                self._send(signal.SIGTERM)
                self.exit_code = await process.wait()
        except TimeoutError:
            self.cut_short = True
            self._note(f"was killed after {grace_s:.0f} s of grace")
            self._send(signal.SIGKILL)
            await process.wait()

    async def _run(self, around: Surroundings) -> Process:
        node, name = around.node, self.spec["name"]
        env = {"HOSTNAME": around.identity.name, **node.image.env, **self._env(around)}
        root = around.folder / f"{name}.root"
        root.mkdir(exist_ok=True)
        mounts = image_mounts(node.image, around.folder / "hosts", node.resolver)
        script = root_script(
            root,
            [*mounts, *mounts_of(self.spec, around.volumes)],
            read_only=(self.spec.get("securityContext") or {}).get("readOnlyRootFilesystem", False),
            then=[
                *privileges(around.pod, self.spec),
                *("env", f"--chdir={self.spec.get('workingDir', '/')}"),
                *command_line(self.spec, env),
            ],
        )
        with (around.folder / f"{name}.log").open("ab") as log:
            return await around.host.start(
                ["unshare", "--mount", "sh", "-euc", script], env=env, log=log
            )

    async def _watch(self, probes: Mapping[str, Probe]) -> None:
        """Probes one start of it."""
        if "startup" in probes and not await self._started(probes["startup"]):
            return
        if "readiness" not in probes:
            self._set_ready(True)
        async with asyncio.TaskGroup() as group:
            if "readiness" in probes:
                group.create_task(self._watch_ready(probes["readiness"]))
            if "liveness" in probes:
                group.create_task(self._watch_alive(probes["liveness"]))

    async def _started(self, probe: Probe) -> bool:
        async for verdict in self._verdicts(probe):
            if verdict is Verdict.GOOD:
                return True
            if verdict is Verdict.BAD:
                await self._put_down("did not start in time")
                return False
        return False

    async def _watch_ready(self, probe: Probe) -> None:
        async for verdict in self._verdicts(probe):
            self._set_ready(verdict is Verdict.GOOD)

    async def _watch_alive(self, probe: Probe) -> None:
        async for verdict in self._verdicts(probe):
            if verdict is Verdict.BAD:
                await self._put_down("is not alive")
                return

    async def _verdicts(self, probe: Probe) -> AsyncIterator[Verdict]:
        tally = Tally(probe)
        await asyncio.sleep(probe.initial_delay_s)
        while True:
            yield tally.add(await self._look(probe))
            await asyncio.sleep(probe.period_s)

    async def _look(self, probe: Probe) -> bool:
        if "exec" in probe.action:
            return await self._exec(probe.action["exec"]["command"], probe.timeout_s)
        assert self._around is not None, "it runs"
        return await look(probe, self.spec, self._around.identity.address)

    async def _exec(self, command: list[str], timeout_s: float) -> bool:
        """Runs it beside the program, with the same root, user and environment."""
        pid, around = self._pid, self._around
        if pid is None or around is None:
            return False
        env = self._env(around)
        spaces = ("--net", "--uts", "--ipc", "--pid", "--mount", "--root")
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--target={pid}", *spaces, "--",
            *privileges(around.pod, self.spec),
            *(expand(each, env) for each in command),
            env={**around.node.image.env, **env},
        )  # fmt: skip
        try:
            async with asyncio.timeout(timeout_s):
                return await process.wait() == 0
        except TimeoutError:
            process.kill()
            return False

    async def _put_down(self, why: str) -> None:
        """What fails a probe is asked, waited for, killed; `keep` starts it again."""
        self._note(why)
        self._set_ready(False)
        assert self._around is not None, "it runs"
        await self.terminate(self._around.grace_s)

    async def _pre_stop(self) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("preStop") or {}
        if "sleep" in hook:
            await asyncio.sleep(hook["sleep"]["seconds"])
        elif "exec" in hook:
            await self._exec(hook["exec"]["command"], float("inf"))
        elif "httpGet" in hook:
            await self._look(Probe(hook, timeout_s=float("inf")))

    def _env(self, around: Surroundings) -> dict[str, str]:
        return environment(self.spec, around.identity, around.stored)

    @property
    def _pid(self) -> int | None:
        """Of the program, as seen from here; None while it does not run."""
        process = self._process
        return child_of(process) if process is not None and process.returncode is None else None

    def _send(self, number: signal.Signals) -> None:
        pid = self._pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _set_ready(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._note("is ready" if ready else "is not ready")
            self.changed()

    def _note(self, what: str) -> None:
        self.note(f"{self.spec['name']} {what}")


def probes_of(container: Manifest) -> dict[str, Probe]:
    """By kind. Raises KeyError for a probe, or a port, that we do not know."""
    found = {}
    for kind in ("startup", "readiness", "liveness"):
        action = container.get(f"{kind}Probe")
        if action is None:
            continue
        found[kind] = Probe.of(action)
        for each in ("httpGet", "tcpSocket"):
            if each in action:
                port_number(action[each]["port"], container)
    return found
