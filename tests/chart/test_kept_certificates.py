"""Certificates that Helm generated are found again in the cluster. The cluster here is as much of
an API server as Helm asks for: what kinds there are, and one Secret.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.chart.helm import CHART, NAMESPACE, RELEASE, Helm, Release

SECRET = f"{RELEASE}-triptych-tls"

_KINDS = {
    "v1": ["ConfigMap", "Pod", "Secret", "Service", "ServiceAccount"],
    "apps/v1": ["Deployment", "StatefulSet"],
    "policy/v1": ["PodDisruptionBudget"],
}


def discovery() -> dict[str, Any]:
    """What an API server answers to those who ask what it has, by path."""
    groups = []
    answers: dict[str, Any] = {
        "/version": {"major": "1", "minor": "33", "gitVersion": "v1.33.0"},
        "/api": {"kind": "APIVersions", "versions": ["v1"]},
    }
    for version, kinds in _KINDS.items():
        resources = [
            {"name": f"{kind.lower()}s", "kind": kind, "namespaced": True, "verbs": ["get"]}
            for kind in kinds
        ]
        listed = {"kind": "APIResourceList", "groupVersion": version, "resources": resources}
        answers[f"/{'apis' if '/' in version else 'api'}/{version}"] = listed
        if "/" in version:
            known = {"groupVersion": version, "version": "v1"}
            groups.append({"name": version.partition("/")[0], "versions": [known]})
    answers["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    return answers


@pytest.fixture
def cluster() -> Iterator[dict[str, Any]]:
    """What its API server answers, by path; "url" is where."""
    answers = discovery()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path.partition("?")[0])
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}
            missing["reason"] = "NotFound"
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(missing if found is None else found).encode())

        def log_message(self, *arguments: object) -> None:
            """The test tells what is wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    answers["url"] = f"http://127.0.0.1:{server.server_port}"
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


def secret_of(helm: Helm, url: str) -> dict[str, Any]:
    options = ["--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", url]
    options += ["--set", "tls.enabled=true"]
    done = helm.run("template", RELEASE, str(CHART), "--namespace", NAMESPACE, *options)
    assert done.returncode == 0, done.stderr
    return Release([each for each in yaml.safe_load_all(done.stdout) if each]).get("Secret", "tls")


def test_an_upgrade_keeps_the_certificates_and_a_first_installation_makes_some(
    helm: Helm, cluster: dict[str, Any]
) -> None:
    first = secret_of(helm, cluster["url"])
    other = secret_of(helm, cluster["url"])
    assert set(first["data"]) == {"tls.crt", "tls.key", "ca.crt"}
    assert first["data"] != other["data"]
    # As Helm marks what it has installed.
    owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": NAMESPACE}
    there = {**first, "metadata": {**first["metadata"], "annotations": owner}}
    cluster[f"/api/v1/namespaces/{NAMESPACE}/secrets/{SECRET}"] = there
    assert secret_of(helm, cluster["url"])["data"] == first["data"]
