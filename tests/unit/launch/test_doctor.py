from __future__ import annotations

import json
from dataclasses import replace

import pytest

from transport.kv.probe import LinkReport
from triptych.config import load_config
from triptych.errors import ConfigError
from triptych.launch.doctor import (
    Report,
    alone,
    judge_machine,
    link_cells,
    needed_links,
    report_json,
)
from triptych.launch.machine import Machine

MACHINE = Machine(
    cores=8,
    cpu_features=("avx2",),
    free_memory=16 << 30,
    total_memory=32 << 30,
    shm=None,
    memlock=8 << 20,
    open_files=1024,
)
SHM = LinkReport("shm", True, "shm", 9.5, 10.0, "")
TCP = LinkReport("nixl", False, "nixl:tcp", 0.0, 0.0, "asked for nixl:rdma, got nixl:tcp")


def problems(machine: Machine, *settings: str) -> dict[str, str]:
    findings = judge_machine(load_config(None, settings), machine)
    return {finding.name: finding.problem for finding in findings if finding.problem}


def test_a_machine_that_has_enough_has_no_problem() -> None:
    pools = "pools=[{name: decode, role: decode, threads: 4}]"
    assert problems(MACHINE, pools) == {}


def test_workers_that_must_share_cores_are_a_problem() -> None:
    assert "16 compute threads share them" in problems(MACHINE)["cores"]


def test_ffn_workers_want_threads_but_no_kv_pool() -> None:
    pools = "pools=[{name: decode, role: decode, threads: 4}, {name: ffn, role: ffn, replicas: 3}]"
    assert "28 compute threads share them" in problems(MACHINE, pools)["cores"]
    tight = replace(MACHINE, free_memory=3 << 30)
    assert "memory" not in problems(tight, pools, "kv.memory=2GiB")
    assert (
        "take 2.0 GiB"
        in problems(replace(tight, free_memory=1 << 30), pools, "kv.memory=2GiB")["memory"]
    )


def test_kv_pools_that_do_not_fit_are_a_problem() -> None:
    tight = replace(MACHINE, free_memory=1 << 30)
    assert "the KV pools alone take 2.0 GiB" in problems(tight)["memory"]
    assert "memory" not in problems(tight, "kv.memory=256MiB")


def test_a_machine_of_one_worker_is_judged_by_that_worker() -> None:
    """As a container of a pod is."""
    pools = (
        "pools=[{name: decode, role: decode, replicas: 9, threads: 8}, {name: p, role: prefill}]"
    )
    config = alone(load_config(None, [pools, "kv.memory=12GiB"]), "decode")
    assert not any(finding.problem for finding in judge_machine(config, MACHINE))
    with pytest.raises(ConfigError, match="no pool named 'ffn'"):
        alone(config, "ffn")


def test_locked_memory_matters_only_to_nixl() -> None:
    assert "memlock" not in problems(MACHINE)
    assert "ulimit -l" in problems(MACHINE, "transport.links=[nixl, tcp]")["memlock"]
    unlimited = replace(MACHINE, memlock=None)
    assert "memlock" not in problems(unlimited, "transport.links=[nixl, tcp]")


def test_a_required_link_is_the_only_one_needed() -> None:
    assert list(needed_links(load_config(None))) == ["shm", "tcp"]
    assert list(needed_links(load_config(None, ["transport.require=tcp"]))) == ["tcp"]


def test_health_is_about_the_links_that_are_needed() -> None:
    assert Report({}, [], [SHM, TCP], frozenset({"shm"})).healthy
    assert not Report({}, [], [SHM, TCP], frozenset({"shm", "nixl"})).healthy


def test_a_link_that_became_another_shows_what_it_became() -> None:
    assert link_cells(TCP, needed=True) == ["nixl", "NO", "nixl:tcp", "-", "-", TCP.reason]
    assert link_cells(TCP, needed=False)[-1].endswith("(not needed by this config)")
    assert link_cells(SHM, needed=True) == ["shm", "yes", "shm", "9.50", "10.00", ""]


def test_the_report_for_programs_says_everything() -> None:
    findings = judge_machine(load_config(None), MACHINE)
    report = json.loads(report_json(Report({"python": "3"}, findings, [SHM], frozenset({"shm"}))))
    assert report["healthy"] is True
    assert report["versions"] == {"python": "3"}
    assert report["links"][0]["needed"] is True
    assert report["machine"][0]["name"] == "cores"
