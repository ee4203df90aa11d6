"""helm, and each values file rendered once per session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.chart.helm import EXAMPLES, Helm, Release, find_helm

Rendered = Callable[..., Release]

# Of a file, or of the defaults alone.
EVERY_PROFILE = [pytest.param(None, id="defaults"), *(pytest.param(f, id=f.stem) for f in EXAMPLES)]


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    home = tmp_path_factory.mktemp("helm")
    return Helm(find_helm(home), home)


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Rendered:
    """rendered(values file or None, "a.b=value", …)."""

    @cache
    def render(values: Path | None = None, *settings: str) -> Release:
        return helm.render(values, *settings)

    return render


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "profile" in metafunc.fixturenames:
        metafunc.parametrize("profile", EVERY_PROFILE)
