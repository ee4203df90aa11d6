from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from triptych.testing.file_server import FileServer, serving


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
