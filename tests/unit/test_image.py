"""The Dockerfile keeps its rules, and what is pinned is what pyproject.toml asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "k8s/image"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {
    "router": ["certs", "hub", "tracing"],
    "cpu": ["certs", "hub", "tracing", "worker"],
    "cuda": ["certs", "hub", "tracing", "worker", "gpu"],
}
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; .*)? \\$", re.MULTILINE)


def pins(name: str) -> dict[str, Version]:
    text = (IMAGE / f"requirements/{name}.txt").read_text()
    return {canonicalize_name(package): Version(version) for package, version in _PIN.findall(text)}


def test_the_dockerfile_has_no_findings() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    # DL3059: steps apart from each other are cached apart from each other.
    command = [str(hadolint), "--ignore", "DL3059", str(IMAGE / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_as_nobody_and_their_roots_may_be_read_only() -> None:
    stages = (IMAGE / "Dockerfile").read_text().split("\nFROM ")
    final = {re.match(r"\S+ AS (\S+)", stage)[1]: stage for stage in stages[1:]}  # type: ignore[index]
    for target in EXTRAS:
        assert final[target].rstrip().endswith("USER 10001:10001")
        assert final[target].startswith("runtime AS")
    assert "PYTHONDONTWRITEBYTECODE=1" in final["runtime"]


@pytest.mark.parametrize("name", ["build", "sbom", *EXTRAS])
def test_every_package_is_pinned_with_a_hash(name: str) -> None:
    text = (IMAGE / f"requirements/{name}.txt").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) == len(pins(name)) > 0
    assert all("--hash=sha256:" in entry for entry in entries)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_pins_are_what_the_project_asks_for(name: str) -> None:
    pinned = pins(name)
    asked = list(PROJECT["dependencies"])
    for extra in EXTRAS[name]:
        asked += PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not pinned: run `make pins`"
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_all_images_have_the_same_version_of_what_they_share() -> None:
    router = pins("router")
    for other in (pins("cpu"), pins("cuda")):
        assert router.items() <= other.items()


def test_the_router_image_has_no_torch_and_the_router_starts_without_what_is_not_in_it() -> None:
    pinned = pins("router")
    assert not [name for name in pinned if re.match("torch|triton|nvidia|transformers", name)]
    absent = [
        module
        for module, distributions in packages_distributions().items()
        if not {canonicalize_name(name) for name in distributions} & pinned.keys()
    ]
    assert "torch" in absent
    ours = {"router", "triptych", "transport", "triptych_kernels"}
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(set(absent) - ours)!r}))\n"  # import fails
        "import router.__main__, triptych.launch.commands.fetch, triptych.weights.fetch\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
