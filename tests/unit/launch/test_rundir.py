from __future__ import annotations

import stat
from pathlib import Path

import pytest

from triptych.errors import ConfigError
from triptych.launch.base import LaunchError
from triptych.launch.rundir import RunDir, own_or_temporary


def test_a_claimed_directory_is_for_its_owner_only(tmp_path: Path) -> None:
    place = RunDir(tmp_path / "run")
    with place.claim():
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
        with pytest.raises(LaunchError, match="another cluster runs"), place.claim():
            raise AssertionError("claimed twice")
    with place.claim():
        assert place.log_file("router").parent.is_dir()


def test_the_url_of_an_earlier_router_is_forgotten(tmp_path: Path) -> None:
    place = RunDir(tmp_path)
    place.router_file().write_text('{"url": "http://127.0.0.1:1"}')
    assert place.router_url() == "http://127.0.0.1:1"
    with place.claim():
        assert place.router_url() is None


def test_the_written_config_is_for_its_owner_only(tmp_path: Path) -> None:
    place = RunDir(tmp_path)
    place.write_config("router: {api_keys: [secret]}\n")
    assert stat.S_IMODE(place.config_file.stat().st_mode) == 0o600
    assert place.config_file.read_text() == "router: {api_keys: [secret]}\n"


def test_sockets_fit_up_to_the_last_byte() -> None:
    parent = Path("/") / ("x" * 89)
    RunDir(parent).check_socket("router")  # 1 + 89 + 1 + 6 + 10 = 107
    with pytest.raises(ConfigError, match="1 bytes too long"):
        RunDir(parent).check_socket("router2")


def test_a_temporary_directory_is_kept_when_something_went_wrong(tmp_path: Path) -> None:
    with own_or_temporary(None) as good:
        assert good.is_dir()
    assert not good.exists()
    with pytest.raises(LaunchError), own_or_temporary(None) as bad:
        raise LaunchError("see the logs")
    assert bad.is_dir()
    bad.rmdir()
    with own_or_temporary(tmp_path) as ours:
        assert ours == tmp_path
    assert tmp_path.is_dir()
