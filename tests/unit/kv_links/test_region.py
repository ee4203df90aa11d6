"""Pools that do not fit, and pools that are closed."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from transport.kv.memory import cgroup_bytes, machine_bytes
from transport.kv.region import Region, RegionShape


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_pool_larger_than_the_memory_is_an_error_with_numbers() -> None:
    before = open_descriptors()
    shape = RegionShape(block_bytes=1 << 30, num_blocks=1 << 20)

    with pytest.raises(
        OSError, match=f"a KV pool of {shape.total_bytes} bytes does not fit: "
    ) as e:
        Region.create(shape)

    assert e.value.errno == errno.ENOMEM
    assert open_descriptors() == before


def test_a_pool_that_the_kernel_refuses_is_an_error_with_numbers() -> None:
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError, match="cannot reserve a KV pool of 2"):
            Region.create(RegionShape(block_bytes=1 << 20, num_blocks=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert open_descriptors() == before


def test_closing_twice_is_closing_once() -> None:
    before = open_descriptors()
    region = Region.create(RegionShape(block_bytes=4096, num_blocks=2))

    region.close()
    region.close()

    assert open_descriptors() == before


def test_available_memory_is_what_the_kernel_could_free() -> None:
    assert machine_bytes("MemTotal:  10 kB\nMemFree: 1 kB\nMemAvailable:   7 kB\n") == 7 << 10


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert cgroup_bytes(limit) == 1 << 62
    limit.write_text("max\n")
    assert cgroup_bytes(limit) == 1 << 62
    limit.write_text("4096\n")
    assert cgroup_bytes(limit) == 4096
