"""How much memory a pool could take. Asked before it is reserved: the kernel answers a pool that
does not fit by killing somebody.
"""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # cgroup v2, as a container sees it


def available_bytes() -> int:
    """What the machine has left, at most what this container may ever use."""
    return min(machine_bytes(_MEMINFO.read_text()), cgroup_bytes(_CGROUP_LIMIT))


def machine_bytes(meminfo: str) -> int:
    """`MemAvailable`: free memory and what the kernel can reclaim without swapping."""
    lines = dict(line.split(":", 1) for line in meminfo.splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def cgroup_bytes(limit: Path) -> int:
    text = limit.read_text().strip() if limit.exists() else "max"
    return 1 << 62 if text == "max" else int(text)
