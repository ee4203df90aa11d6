from __future__ import annotations

import sys
from pathlib import Path

import pytest

from triptych.config import ClusterConfig, PoolConfig, load_config, parse_config
from triptych.errors import ConfigError
from triptych.launch.plan import ProcessSpec, plan, scale_pool

RUN = Path("/run/cluster")


def names(specs: list[ProcessSpec]) -> list[str]:
    return [spec.name for spec in specs]


def with_pools(*pools: PoolConfig) -> ClusterConfig:
    return ClusterConfig(pools=pools)


def test_the_router_comes_first_then_the_workers_in_the_order_of_the_config() -> None:
    config = with_pools(
        PoolConfig(name="prefill", role="prefill"),
        PoolConfig(name="decode", role="decode", replicas=2),
    )
    specs = plan(config, RUN, cores=4)
    assert names(specs) == ["router", "prefill-0", "decode-0", "decode-1"]
    assert [spec.ready for spec in specs] == ["listening", "attached", "attached", "attached"]
    assert [spec.role for spec in specs] == ["router", "prefill", "decode", "decode"]


def test_each_process_is_started_by_module_name_with_the_written_config() -> None:
    router, prefill, _ = plan(ClusterConfig(), RUN, cores=4)
    where = ("--config", "/run/cluster/config.yaml", "--run-dir", "/run/cluster")
    assert router.argv == (sys.executable, "-m", "router", "--id", "router", *where)
    who = ("--pool", "prefill", "--id", "prefill-0")
    assert prefill.argv == (sys.executable, "-m", "prefill_worker", *who, *where)


def test_further_routers_are_numbered_and_listen_on_the_next_ports() -> None:
    config = parse_config({"router": {"replicas": 3, "port": 8000}})
    routers = plan(config, RUN, cores=4)[:3]
    assert names(routers) == ["router", "router-1", "router-2"]
    assert {spec.ready for spec in routers} == {"listening"}
    assert [config.router.port_of(spec.name) for spec in routers] == [8000, 8001, 8002]
    anywhere = parse_config({"router": {"replicas": 2, "port": 0}})
    assert anywhere.router.port_of("router-1") == 0


def test_no_pool_is_named_like_the_routers() -> None:
    with pytest.raises(ConfigError, match="give the pool another"):
        parse_config({"pools": [{"name": "router", "role": "decode"}]})


def test_a_pool_keeps_its_own_name_and_its_role_chooses_the_module() -> None:
    config = with_pools(PoolConfig(name="long-context", role="decode"))
    worker = plan(config, RUN, cores=4)[1]
    assert worker.name == "long-context-0"
    assert worker.argv[2] == "decode_worker"


def test_a_pool_of_ffn_workers_can_be_added() -> None:
    config = scale_pool(ClusterConfig(), "ffn", 2)
    assert config.remote_experts and not ClusterConfig().remote_experts
    first, second = plan(config, RUN, cores=4)[-2:]
    assert (first.name, second.name) == ("ffn-0", "ffn-1")
    assert first.argv[2] == "ffn_worker" and first.ready == "attached"
    assert not scale_pool(config, "ffn", 0).remote_experts


def test_a_pool_without_replicas_means_no_process() -> None:
    config = with_pools(
        PoolConfig(name="prefill", role="prefill", replicas=0),
        PoolConfig(name="decode", role="decode"),
    )
    assert names(plan(config, RUN, cores=4)) == ["router", "decode-0"]


@pytest.mark.parametrize(("threads", "expected"), [(0, "4"), (1, "1"), (8, "8")])
def test_workers_get_the_threads_of_their_pool_or_one_per_core(threads: int, expected: str) -> None:
    config = with_pools(PoolConfig(name="decode", role="decode", threads=threads))
    router, worker = plan(config, RUN, cores=4)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        assert worker.env[variable] == expected
        assert router.env[variable] == "1"


def test_threads_only_yield_their_cores_when_there_are_more_threads_than_cores() -> None:
    config = with_pools(
        PoolConfig(name="prefill", role="prefill", threads=1),
        PoolConfig(name="decode", role="decode", threads=1, replicas=2),
    )
    assert all("OMP_WAIT_POLICY" not in spec.env for spec in plan(config, RUN, cores=3))
    crowded = plan(config, RUN, cores=2)
    assert [spec.env.get("OMP_WAIT_POLICY") for spec in crowded] == [None, *["PASSIVE"] * 3]


def test_a_run_dir_that_is_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--run-dir .* too long for unix sockets"):
        plan(ClusterConfig(), Path("/run") / ("x" * 100), cores=1)


def test_scaling_changes_the_replicas_of_the_one_pool_with_that_role() -> None:
    scaled = scale_pool(ClusterConfig(), "decode", 3)
    assert names(plan(scaled, RUN, cores=1))[2:] == ["decode-0", "decode-1", "decode-2"]
    assert scaled.pool("prefill") == ClusterConfig().pool("prefill")


def test_scaling_keeps_every_other_setting() -> None:
    config = load_config(None, ["drain_s=3", "router.port=0"])
    assert scale_pool(config, "prefill", 0) == load_config(
        None,
        [
            "drain_s=3",
            "router.port=0",
            "pools=[{name: prefill, role: prefill, replicas: 0}, {name: decode, role: decode}]",
        ],
    )


def test_scaling_adds_the_pool_that_is_missing() -> None:
    config = with_pools(PoolConfig(name="decode", role="decode"))
    assert names(plan(scale_pool(config, "prefill", 1), RUN, cores=1)) == [
        "router",
        "decode-0",
        "prefill-0",
    ]


def test_scaling_two_pools_of_one_role_is_ambiguous() -> None:
    config = with_pools(PoolConfig(name="a", role="decode"), PoolConfig(name="b", role="decode"))
    with pytest.raises(ConfigError, match=r"--decode 2: several pools do decode \(a, b\)"):
        scale_pool(config, "decode", 2)


def test_scaling_the_decode_workers_away_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one decode worker"):
        scale_pool(ClusterConfig(), "decode", 0)
