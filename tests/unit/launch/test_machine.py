from __future__ import annotations

import pytest

from triptych.launch.machine import (
    cpu_features,
    interface_address,
    may_lock,
    quota_cores,
    this_machine,
)


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [
        ("max 100000\n", 8),
        ("", 8),
        ("400000 100000", 4),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("1600000 100000", 8),
    ],
)
def test_a_containers_cpu_limit_caps_the_cores(cpu_max: str, expected: int) -> None:
    assert quota_cores(8, cpu_max) == expected


def test_only_features_that_kernels_can_use_are_named() -> None:
    cpuinfo = "processor : 0\nflags\t\t: fpu sse2 avx2 amx_tile\nmodel : x\n"
    assert cpu_features(cpuinfo) == ("avx2", "amx_tile")
    assert cpu_features("") == ()


def test_this_machine_has_cores_and_memory() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert 0 < machine.free_memory <= machine.total_memory


def test_the_right_to_lock_memory_counts_when_it_is_in_force():
    assert may_lock("Name:\tpython\nCapEff:\t0000000000004000\n")
    assert not may_lock("CapPrm:\t0000000000004000\nCapEff:\t0000000000000000\n")
    assert not may_lock("")


def test_an_interface_is_known_by_its_address():
    assert interface_address("lo") == "127.0.0.1"
    assert interface_address("10.1.2.3") == "10.1.2.3"
