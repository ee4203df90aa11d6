"""Facts about the machine we stand on. Reads files and asks the kernel; changes nothing."""

from __future__ import annotations

import math
import os
import resource
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from triptych.errors import ConfigError

_CGROUP = Path("/sys/fs/cgroup")
_CAP_IPC_LOCK = 14
_USEFUL_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a cluster can have here. Sizes in bytes; a container's limits are counted in."""

    cores: int
    cpu_features: tuple[str, ...]  # vector and tile units, as /proc/cpuinfo names them
    free_memory: int  # without swapping
    total_memory: int
    shm: int | None  # size of /dev/shm; None: there is none
    memlock: int | None  # that a process may pin, for RDMA; None: no limit
    open_files: int  # that a process may hold: each client and each peer costs one


def this_machine() -> Machine:
    return Machine(
        cores=usable_cores(),
        cpu_features=cpu_features(_read(Path("/proc/cpuinfo"))),
        free_memory=_free_memory(),
        total_memory=_total_memory(),
        shm=_shm_bytes(),
        memlock=_memlock_bytes(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def usable_cores() -> int:
    """Cores that this process may use: its affinity, capped by a container's CPU limit."""
    return quota_cores(len(os.sched_getaffinity(0)), _read(_CGROUP / "cpu.max"))


def quota_cores(cores: int, cpu_max: str) -> int:
    """`cores`, or fewer under the limit in `cpu_max`: cgroup v2's "<quota>|max <period>", or ""."""
    quota, _, period = cpu_max.strip().partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """Those that kernels can use, from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
            return tuple(name for name in _USEFUL_FEATURES if name in flags)
    return ()


def interface_address(name: str) -> str:
    """The first address of the network interface `name`, IPv4 before IPv6; any other text is taken
    to be an address. Raises ConfigError for an interface without one.
    """
    found = psutil.net_if_addrs().get(name)
    if found is None:
        return name
    usable = [
        address
        for family in (socket.AF_INET, socket.AF_INET6)
        for address in found
        if address.family == family and not address.address.startswith("fe80:")
    ]
    if not usable:
        raise ConfigError(f"--kv-host {name}: this network interface has no address")
    return usable[0].address


def _free_memory() -> int:
    available: int = psutil.virtual_memory().available
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        return max(0, min(available, int(limit) - int(used)))
    return available


def _total_memory() -> int:
    total: int = psutil.virtual_memory().total
    limit = _read(_CGROUP / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def _shm_bytes() -> int | None:
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return stat.f_frsize * stat.f_blocks


def _memlock_bytes() -> int | None:
    if may_lock(_read(Path("/proc/self/status"))):
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def may_lock(status: str) -> bool:
    """Whether /proc/<pid>/status tells of CAP_IPC_LOCK in force: no limit holds then. A container
    that was given the capability but runs as another user than root does not have it in force.
    """
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
