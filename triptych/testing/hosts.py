"""Many hosts on one machine: network namespaces on one bridge, with links to slow down or to cut.

    async with Network.create() as network:
        async with network.host("left") as left, network.host("right") as right:
            await left.limit(rate_mbit=100)
            process = await left.start(["python", "-m", "decode_worker", ...])

Nothing has a name in the machine's own lists. A namespace lives as long as its first process, which
ends when our end of a pipe does: a test that is killed leaves nothing either. Our own process is on
the network too, at `network.gateway`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_TOOLS = ("ip", "tc", "nsenter", "unshare")
# Tells its process id as the outside sees it, then waits for the end of its input. As the first
# process of its PID namespace it takes all others there with it.
_FIRST = "read -r pid rest < /proc/self/stat; echo $pid; exec cat"


class HostError(Exception):
    """A command about namespaces or links failed; with what it said."""


def why_not() -> str | None:
    """Why there can be no hosts on this machine; None: there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (packages iproute2, util-linux)"
    rehearsal = "ip link add a0 type bridge && ip link add b0 type veth peer name b1"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", rehearsal],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return f"needs CAP_SYS_ADMIN and CAP_NET_ADMIN (`unshare -rn` lends them): {done.stderr}"
    return None


async def run_tool(*command: str, stdin: str = "") -> str:
    """What it printed. Raises HostError."""
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    said, complaint = await process.communicate(stdin.encode())
    if process.returncode:
        raise HostError(f"{' '.join(command)}: {complaint.decode().strip() or process.returncode}")
    return said.decode()


@dataclass(frozen=True, slots=True)
class _Namespace:
    """Of network, PIDs, host name and IPC."""

    keeper: Process
    pid: int  # of its first process, as seen from here

    @classmethod
    async def create(cls) -> _Namespace:
        kinds = ("--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child")
        keeper = await asyncio.create_subprocess_exec(
            "unshare", *kinds, "sh", "-euc", _FIRST, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert keeper.stdout is not None and keeper.stderr is not None, "pipes were asked for"
        told = await keeper.stdout.readline()
        if not told:
            raise HostError((await keeper.stderr.read()).decode().strip())
        return cls(keeper, int(told))

    async def ip(self, *commands: str) -> None:
        await run_tool(
            "nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "-batch", "-",
            stdin="\n".join(commands),
        )  # fmt: skip

    async def end(self) -> None:
        """Kills whatever runs in it; its links go with it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self.keeper.stdin is not None, "a pipe was asked for"
        self.keeper.stdin.close()
        await self.keeper.wait()


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace, and a PID namespace that `end` empties; the files are the machine's."""

    name: str
    address: str
    _inside: _Namespace
    _node: _Namespace
    _port: str  # of the bridge

    def command(self, *argv: str) -> list[str]:
        """`argv` as it is run there."""
        spaces = ("--net", "--uts", "--ipc", "--pid")
        return ["nsenter", f"--target={self._inside.pid}", *spaces, "--", *argv]

    async def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: IO[bytes] | None = None,
    ) -> Process:
        """The process is nsenter's; its only child is the program, see `child_of`."""
        output = DEVNULL if log is None else log
        return await asyncio.create_subprocess_exec(
            *self.command(*argv), env=env, stdin=DEVNULL, stdout=output, stderr=output
        )

    async def limit(self, *, rate_mbit: float, latency_ms: int = 50) -> None:
        """Both ways, by a token bucket; what would wait longer than `latency_ms` is dropped."""
        bucket = f"root tbf rate {rate_mbit}mbit burst 64kb latency {latency_ms}ms"
        await self._shape("replace", *bucket.split())

    async def unlimit(self) -> None:
        await self._shape("replace", "root", "noqueue")

    async def _shape(self, verb: str, *queue: str) -> None:
        for pid, device in ((self._inside.pid, "eth0"), (self._node.pid, self._port)):
            inside = ("nsenter", f"--net=/proc/{pid}/ns/net")
            await run_tool(*inside, "tc", "qdisc", verb, "dev", device, *queue)

    async def cut(self) -> None:
        """Pulls the cable: nothing is refused, everything is lost."""
        await self._node.ip(f"link set {self._port} down")

    async def mend(self) -> None:
        await self._node.ip(f"link set {self._port} up")

    async def end(self) -> None:
        await self._inside.end()


def child_of(process: Process) -> int | None:
    """The program behind `Host.start`; None: it has not begun, or has ended."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        children = path.read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


@dataclass(slots=True)
class Network:
    """A /24 of 198.18.0.0/15, which is set apart for tests (RFC 2544)."""

    subnet: str  # its first three numbers
    _node: _Namespace
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(10))

    @classmethod
    @contextlib.asynccontextmanager
    async def create(cls) -> AsyncIterator[Network]:
        """Raises HostError."""
        subnet = _free_subnet(await run_tool("ip", "-4", "-o", "address"))
        node = await _Namespace.create()
        network = cls(subnet, node)
        try:
            device = network.device
            await run_tool(
                "ip", "-batch", "-",
                stdin=f"link add {device} type veth peer name uplink netns {node.pid}\n"
                f"address add {network.gateway}/24 dev {device}\nlink set {device} up",
            )  # fmt: skip
            await node.ip(
                "link add bridge0 type bridge",
                "link set bridge0 up",
                "link set uplink master bridge0 up",
            )
            yield network
        finally:
            # Here and now: the kernel takes its time to clear a namespace away.
            with contextlib.suppress(HostError):
                await run_tool("ip", "link", "delete", network.device)
            await node.end()

    @property
    def gateway(self) -> str:
        """Our own address there."""
        return f"{self.subnet}.1"

    @property
    def device(self) -> str:
        """Our own end."""
        return "triptych" + re.sub(r"198\.(\d+)\.(\d+)", r"\1x\2", self.subnet)

    async def add_address(self, last: int) -> str:
        """One more address of ours, e.g. of a Service."""
        address = f"{self.subnet}.{last}"
        await run_tool("ip", "address", "add", f"{address}/32", "dev", self.device)
        return address

    async def drop_address(self, address: str) -> None:
        await run_tool("ip", "address", "delete", f"{address}/32", "dev", self.device)

    async def add_host(self, name: str) -> Host:
        """The caller ends it. No address is given twice."""
        number = next(self._numbers)
        if number >= 200:
            raise HostError("no addresses left: 190 hosts were made in this network")
        address, port = f"{self.subnet}.{number}", f"port{number}"
        inside = await _Namespace.create()
        await self._node.ip(
            f"link add {port} type veth peer name eth0 netns {inside.pid}",
            f"link set {port} master bridge0 up",
        )
        await inside.ip(
            "link set lo up",
            f"address add {address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {self.gateway}",
        )
        host = Host(name, address, inside, self._node, port)
        await run_tool(*host.command("hostname", name))
        return host

    @contextlib.asynccontextmanager
    async def host(self, name: str) -> AsyncIterator[Host]:
        host = await self.add_host(name)
        try:
            yield host
        finally:
            await host.end()


def _free_subnet(addresses: str) -> str:
    """`addresses`: what `ip -4 -o address` prints."""
    taken = set(re.findall(r"inet (\d+\.\d+\.\d+)\.", addresses))
    every = [f"198.{18 + number // 256}.{number % 256}" for number in range(512)]
    return random.choice([subnet for subnet in every if subnet not in taken])
