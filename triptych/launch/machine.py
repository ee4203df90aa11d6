"""Facts about the machine we stand on. Reads files and asks the kernel; changes nothing."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")
_USEFUL_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, capped by a container's CPU limit."""
    return quota_cores(len(os.sched_getaffinity(0)), _read(_CGROUP / "cpu.max"))


def quota_cores(cores: int, cpu_max: str) -> int:
    """`cores`, or fewer under the limit in `cpu_max`: cgroup v2's "<quota>|max <period>", or ""."""
    quota, _, period = cpu_max.strip().partition(" ")
    if not quota.isdigit() or not period.isdigit():
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def free_memory() -> int:
    """Bytes that can be had without swapping, capped by a container's memory limit."""
    available: int = psutil.virtual_memory().available
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        return max(0, min(available, int(limit) - int(used)))
    return available


def total_memory() -> int:
    total: int = psutil.virtual_memory().total
    limit = _read(_CGROUP / "memory.max").strip()
    return min(total, int(limit)) if limit.isdigit() else total


def shm_bytes() -> int | None:
    """Size of /dev/shm; None where there is none."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return stat.f_frsize * stat.f_blocks


def memlock_bytes() -> int | None:
    """How much memory a process may pin for RDMA; None: no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def open_files() -> int:
    """How many descriptors a process may hold: each client and each peer costs one."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def cpu_features() -> list[str]:
    """The vector and tile units that kernels can use, as /proc/cpuinfo names them."""
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return [name for name in _USEFUL_FEATURES if name in flags]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
