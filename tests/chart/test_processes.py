"""The processes that a release starts: their arguments, ids, config, and how long they may stop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from router.__main__ import RouterArgs
from router.__main__ import parse_args as parse_router_args
from tests.chart.conftest import Rendered
from tests.chart.helm import NAMESPACE, RELEASE, Release, arguments_of, pool_of, pools
from triptych.config import ClusterConfig, load_config, parse_config
from triptych.worker.args import WorkerArgs, parse_worker_args

MARGIN_S = 15


def config_of(release: Release, folder: Path) -> tuple[Path, ClusterConfig]:
    file = folder / "config.yaml"
    file.write_text(release.config)
    return file, load_config(file)


def argv_of(release: Release, pool: str, index: int, config: Path) -> list[str]:
    name = f"{RELEASE}-triptych-{pool}-{index}"
    pod = {
        "metadata.name": name,
        "status.podIP": f"10.1.2.{index}",
        "spec.nodeName": "node-7",
        "metadata.labels['apps.kubernetes.io/pod-index']": str(index),
    }
    argv = arguments_of(release.container(pool), pod)
    return [arg.replace("/etc/triptych/config.yaml", str(config)) for arg in argv]


def worker(release: Release, pool: str, index: int, folder: Path) -> WorkerArgs:
    file, config = config_of(release, folder)
    return parse_worker_args(config.pool(pool).role, argv_of(release, pool, index, file))


def router(release: Release, index: int, folder: Path) -> RouterArgs:
    file, _ = config_of(release, folder)
    return parse_router_args(argv_of(release, "router", index, file))


def test_the_config_is_one_that_the_processes_read(
    rendered: Rendered, profile: Path | None, tmp_path: Path
) -> None:
    release = rendered(profile)
    _, config = config_of(release, tmp_path)
    assert {pool.name for pool in config.pools} | {"router"} == {
        pool_of(each) for each in release.workloads
    }
    assert config.transport.links[0] != "shm"


def test_every_worker_accepts_its_arguments_and_can_be_reached(
    rendered: Rendered, profile: Path | None, tmp_path: Path
) -> None:
    release = rendered(profile)
    _, config = config_of(release, tmp_path)
    for pool in config.pools:
        args = worker(release, pool.name, 1, tmp_path)
        assert args.pool.name == pool.name
        assert args.listen == "10.1.2.1:8000"
        assert (args.metrics_host, args.metrics_port) == ("10.1.2.1", 9090)
        assert args.domain == "node-7"
        command = release.container(pool.name)["command"]
        assert command == ["python", "-m", f"{pool.role}_worker"]


def test_every_router_accepts_its_arguments_and_has_a_name_of_its_own(
    rendered: Rendered, profile: Path | None, tmp_path: Path
) -> None:
    release = rendered(profile)
    _, config = config_of(release, tmp_path)
    routers = [router(release, index, tmp_path) for index in range(config.router.replicas)]
    assert tuple(each.name for each in routers) == config.router.names
    assert {each.port for each in routers} == {config.router.port}
    assert release.workload("router")["spec"]["replicas"] == config.router.replicas


def test_workers_attach_to_each_router_by_its_name_in_the_headless_service(
    rendered: Rendered, tmp_path: Path
) -> None:
    release = rendered(None, "config.router.replicas=3")
    service = release.get("Service", "router")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # ready only once workers found it
    stateful = release.workload("router")
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    [port] = [p for p in release.container("router")["ports"] if p["name"] == "registry"]
    expected = tuple(
        f"{stateful['metadata']['name']}-{index}.{service['metadata']['name']}.{NAMESPACE}"
        f".svc.cluster.local:{port['containerPort']}"
        for index in range(3)
    )
    assert worker(release, "decode", 0, tmp_path).registries == expected
    registry = router(release, 0, tmp_path).registry_listen
    assert registry == f"0.0.0.0:{port['containerPort']}"


def test_workers_that_are_told_apart_by_number_are_stateful_and_keep_their_ids(
    rendered: Rendered, tmp_path: Path
) -> None:
    release = rendered(EXPERTS)
    kinds = {pool_of(each): each["kind"] for each in release.workloads}
    assert kinds == {
        "router": "StatefulSet",
        "prefill": "Deployment",
        "decode": "Deployment",
        "ffn": "StatefulSet",
        "draft": "StatefulSet",
    }
    assert worker(release, "ffn", 3, tmp_path).worker_id == "ffn-3"
    assert worker(release, "decode", 3, tmp_path).worker_id == f"{RELEASE}-triptych-decode-3"


def test_decode_workers_know_each_draft_worker(rendered: Rendered, tmp_path: Path) -> None:
    release = rendered(EXPERTS)
    draft = f"{RELEASE}-triptych-draft"
    targets = [f"{draft}-{i}.{draft}.{NAMESPACE}.svc.cluster.local:8000" for i in range(2)]
    assert worker(release, "decode", 0, tmp_path).peers == {"draft": targets}
    assert worker(release, "prefill", 0, tmp_path).peers == {}


EXPERTS = Path(__file__).parents[2] / "k8s/examples/experts.yaml"


@pytest.mark.parametrize(("drain_s", "limit_s"), [("30", 45), ("0", 15), ("12.5", 28)])
def test_a_pod_is_given_longer_to_stop_than_its_drain_takes(
    rendered: Rendered, drain_s: str, limit_s: int
) -> None:
    release = rendered(None, f"config.drain_s={drain_s}", "pods.router.preStopSeconds=7")
    assert release.pod("decode")["spec"]["terminationGracePeriodSeconds"] == limit_s
    assert "lifecycle" not in release.container("decode")
    assert release.pod("router")["spec"]["terminationGracePeriodSeconds"] == limit_s + 7
    assert release.container("router")["lifecycle"]["preStop"]["sleep"]["seconds"] == 7


def test_in_no_profile_a_drain_is_cut_short(
    rendered: Rendered, profile: Path | None, tmp_path: Path
) -> None:
    release = rendered(profile)
    _, config = config_of(release, tmp_path)
    for workload in release.workloads:
        spec = workload["spec"]["template"]["spec"]
        lifecycle = spec["containers"][0].get("lifecycle", {})
        sleep_s = lifecycle.get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed_s = math.ceil(config.drain_s) + sleep_s + MARGIN_S
        assert spec["terminationGracePeriodSeconds"] >= needed_s


def test_liveness_has_more_patience_than_readiness_and_loading_has_most(
    rendered: Rendered, profile: Path | None
) -> None:
    release = rendered(profile)
    for workload in release.workloads:
        container = release.container(pool_of(workload))
        live, ready = container["livenessProbe"], container["readinessProbe"]
        assert live["httpGet"]["path"] == "/live" and ready["httpGet"]["path"] == "/ready"
        assert live["periodSeconds"] * live["failureThreshold"] >= 60
        start = container["startupProbe"]
        assert start["httpGet"]["path"] == "/live"
        assert start["periodSeconds"] * start["failureThreshold"] >= 600


def checksums(release: Release) -> dict[str, str]:
    return {
        pool_of(each): each["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for each in release.workloads
    }


def test_a_changed_setting_rolls_all_pods(rendered: Rendered) -> None:
    before, after = checksums(rendered()), checksums(rendered(None, "config.kv.memory=512MiB"))
    assert all(before[pool] != after[pool] for pool in before)


def test_another_number_of_workers_rolls_no_pod(rendered: Rendered) -> None:
    release = rendered(None, pools(("prefill", "prefill"), ("decode", "decode"), replicas=5))
    assert release.workload("decode")["spec"]["replicas"] == 5
    more = {pool_of(each): each["spec"]["template"] for each in release.workloads}
    few = {pool_of(each): each["spec"]["template"] for each in rendered().workloads}
    assert more == few


def test_a_setting_of_one_pool_rolls_that_pool_alone(rendered: Rendered) -> None:
    changed = pools(("prefill", "prefill"), ("decode", "decode"), threads=3)
    before, after = checksums(rendered()), checksums(rendered(None, changed))
    assert [pool for pool in before if before[pool] != after[pool]] == ["decode"]


def test_the_doctor_asks_the_service_of_the_routers_with_the_config_of_the_release(
    rendered: Rendered, profile: Path | None
) -> None:
    release = rendered(profile)
    [container] = release.get("Pod", "doctor")["spec"]["containers"]
    assert container["command"] == ["triptych", "doctor"]
    [port] = release.get("Service")["spec"]["ports"]
    assert f"--url=http://{RELEASE}-triptych:{port['port']}" in container["args"]
    assert "--config=/etc/triptych/config.yaml" in container["args"]


def test_numbers_switches_and_big_sizes_come_through_as_they_were_written(
    rendered: Rendered, tmp_path: Path
) -> None:
    """YAML to JSON to Go to YAML: large numbers stay integers, and `off` is not lost."""
    values = tmp_path / "values.yaml"
    settings = {
        "kv": {"memory": 68719476736, "block_tokens": 64},
        "transport": {"links": ["tcp"], "digest": "off", "keep_lost_s": 0.5},
        "speculation": {"mode": "table", "nodes_from": {1: 8, 16: 0}},
        "router": {"host": "0.0.0.0", "index": False, "request_deadline_s": 1e3},
    }
    values.write_text(yaml.safe_dump({"config": settings}).replace("'off'", "off"))
    _, config = config_of(rendered(values), tmp_path)
    expected = parse_config({**settings, "experts": {"links": ["tcp"]}})
    assert config.kv == expected.kv
    assert config.transport == expected.transport
    assert config.speculation == expected.speculation
    assert config.router == expected.router


def test_threads_do_not_spin_on_cores_that_others_may_want(rendered: Rendered) -> None:
    def env(*settings: str) -> dict[str, str]:
        container = rendered(None, *settings).container("decode")
        return {each["name"]: each["value"] for each in container["env"] if "value" in each}

    assert env()["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "OMP_WAIT_POLICY" not in env("pods.decode.resources.limits.cpu=4")
    three = env(pools(("decode", "decode"), threads=3))
    assert three["OMP_NUM_THREADS"] == "3"


def test_a_rollout_is_not_given_up_while_a_model_may_still_load(
    rendered: Rendered, profile: Path | None
) -> None:
    release = rendered(profile)
    for workload in release.kinds("Deployment"):
        start = release.container(pool_of(workload))["startupProbe"]
        load_s = start["periodSeconds"] * start["failureThreshold"]
        assert workload["spec"]["progressDeadlineSeconds"] > load_s
