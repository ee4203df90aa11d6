"""What is rendered is what Kubernetes takes, for every values file and version; and is safe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chart.conftest import Rendered
from tests.chart.helm import CHART, EXAMPLES, RELEASE, Helm, Manifest, Release
from tests.chart.kubernetes import VERSIONS, errors_of
from tests.chart.test_options import EVERYTHING


def test_the_chart_passes_helms_own_strict_check(helm: Helm, profile: Path | None) -> None:
    values = [] if profile is None else ["--values", str(profile)]
    done = helm.run("lint", "--strict", str(CHART), *values)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_in_kubernetes(rendered: Rendered, version: str) -> None:
    """All profiles at once: what they render alike is looked at once."""
    releases = [rendered(values) for values in (None, *EXAMPLES)]
    releases.append(rendered(None, *EVERYTHING))
    different = {json.dumps(each, sort_keys=True): each for r in releases for each in r.manifests}
    assert [error for each in different.values() for error in errors_of(each, version)] == []


def test_an_unknown_field_of_a_manifest_would_be_found(rendered: Rendered) -> None:
    deployment = json.loads(json.dumps(rendered().workload("decode")))
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    [error] = errors_of(deployment, "1.37")
    assert "imagePolicy" in error


def test_an_old_kubernetes_is_refused_by_its_version(helm: Helm) -> None:
    done = helm.run("template", RELEASE, str(CHART), "--kube-version", "1.30")
    assert done.returncode != 0
    assert "1.30" in done.stderr and "kubeVersion" in done.stderr


def test_no_two_objects_share_a_name(rendered: Rendered, profile: Path | None) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in rendered(profile).manifests]
    assert sorted(set(names)) == sorted(names)
    assert all(len(name) <= 63 for _, name in names)


def selectors(release: Release) -> list[tuple[str, Manifest]]:
    """Of everything that selects pods; the selector of each pool among them."""
    found = []
    for each in release.manifests:
        spec = each.get("spec") or {}
        if each["kind"] == "Service":
            found.append((each["metadata"]["name"], spec["selector"]))
        elif each["kind"] == "NetworkPolicy":
            found.append((each["metadata"]["name"], spec["podSelector"]["matchLabels"]))
        elif each["kind"] == "ServiceMonitor":  # selects Services
            continue
        elif "selector" in spec:
            found.append((each["metadata"]["name"], spec["selector"]["matchLabels"]))
    return found


def test_every_selector_finds_pods_and_a_pools_own_finds_no_other_pools(
    rendered: Rendered, profile: Path | None
) -> None:
    release = rendered(profile)
    pods = {each["metadata"]["name"]: each["spec"]["template"] for each in release.workloads}
    for name, wanted in selectors(release):
        found = {
            workload
            for workload, pod in pods.items()
            if wanted.items() <= pod["metadata"]["labels"].items()
        }
        assert found, name
        if "triptych/pool" in wanted:
            assert found == {f"{RELEASE}-triptych-{wanted['triptych/pool']}"}, name
    for workload in release.workloads:
        own = workload["spec"]["selector"]["matchLabels"]
        assert own.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def test_a_service_monitor_finds_the_service_of_the_routers(rendered: Rendered) -> None:
    release = rendered(None, "monitoring.scrape.enabled=true")
    wanted = release.get("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    ports = [
        port["name"]
        for each in release.kinds("Service")
        if wanted.items() <= each["metadata"]["labels"].items()
        for port in each["spec"]["ports"]
    ]
    assert ports.count("http") == 1


def test_ports_that_services_and_probes_name_are_the_containers(
    rendered: Rendered, profile: Path | None
) -> None:
    release = rendered(profile)
    for workload in release.workloads:
        pool = workload["spec"]["template"]["metadata"]["labels"]["triptych/pool"]
        container = release.container(pool)
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        for service in release.kinds("Service"):
            if service["spec"]["selector"]["triptych/pool"] == pool:
                assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_pods_meet_the_restricted_security_standard(
    rendered: Rendered, profile: Path | None
) -> None:
    for spec in pod_specs(rendered(profile)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert "hostNetwork" not in spec
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def pod_specs(release: Release) -> list[Manifest]:
    templates = [each["spec"]["template"] for each in release.workloads]
    return [each["spec"] for each in (*templates, release.get("Pod", "doctor"))]


def test_everything_that_is_mounted_is_a_volume_and_the_other_way_round(
    rendered: Rendered, profile: Path | None
) -> None:
    for spec in pod_specs(rendered(profile)):
        mounted = {
            mount["name"]
            for container in [*spec["containers"], *spec.get("initContainers", [])]
            for mount in container["volumeMounts"]
        }
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_a_worker_has_room_in_dev_shm_for_its_kv_pool(rendered: Rendered) -> None:
    release = rendered(None, "config.kv.memory=2.5GiB", "pods.prefill.shmSize=8Gi")
    sizes = {}
    for pool in ("decode", "prefill"):
        [shm] = [v for v in release.pod(pool)["spec"]["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        sizes[pool] = shm["emptyDir"]["sizeLimit"]
    assert sizes == {"decode": f"{2560 + 64}Mi", "prefill": "8Gi"}
