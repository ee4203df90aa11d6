"""Our import names resolve to our files, whatever else is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = [
    "triptych",
    "router",
    "transport",
    "prefill_worker",
    "decode_worker",
    "draft_worker",
    "triptych_kernels",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_import_name_is_ours(name: str) -> None:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_a_package_tells_type_checkers_that_it_is_typed(name: str) -> None:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").is_file()


def test_the_kernels_folder_is_not_a_package() -> None:
    assert not (ROOT / "kernels/__init__.py").exists(), "would shadow Hugging Face's `kernels`"


def test_the_tests_folder_is_not_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py")), "any package may ship a `tests`"
