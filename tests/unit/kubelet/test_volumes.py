"""Files of a pod."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from triptych.testing.kubelet.variables import Stored
from triptych.testing.kubelet.volumes import (
    Mount,
    VolumeMaker,
    mounts_of,
    privileges,
    quantity_bytes,
    root_script,
)

STORED = Stored({"config": {"a.yaml": b"a", "b.yaml": b"b"}}, {"keys": {"k": b"secret"}})


@pytest.fixture
def maker(tmp_path: Path) -> VolumeMaker:
    return VolumeMaker(tmp_path, STORED, {"weights": Path("/weights")}, group=None)


def test_a_config_map_is_a_folder_of_files(maker: VolumeMaker) -> None:
    volumes = maker.make([{"name": "config", "configMap": {"name": "config"}}])
    assert isinstance(volumes["config"], Path)
    assert {each.name: each.read_text() for each in volumes["config"].iterdir()} == {
        "a.yaml": "a",
        "b.yaml": "b",
    }


def test_items_and_modes_are_as_asked(maker: VolumeMaker) -> None:
    items = [{"key": "k", "path": "sub/name"}]
    volume = {"secretName": "keys", "items": items, "defaultMode": 0o440}
    [made] = maker.make([{"name": "keys", "secret": volume}]).values()
    assert isinstance(made, Path)
    assert stat.S_IMODE((made / "sub/name").stat().st_mode) == 0o440


def test_a_projected_volume_is_one_folder_with_a_mode_for_all(maker: VolumeMaker) -> None:
    own = {"key": "k", "path": "own", "mode": 0o600}
    sources = [
        {"secret": {"name": "keys", "items": [own]}},
        {"secret": {"name": "keys"}},
        {"configMap": {"name": "config", "items": [{"key": "a.yaml", "path": "a"}]}},
        {"secret": {"name": "lost", "optional": True}},
    ]
    volume = {"name": "all", "projected": {"defaultMode": 0o400, "sources": sources}}
    made = maker.make([volume])["all"]
    assert isinstance(made, Path)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in made.iterdir()}
    assert modes == {"own": 0o600, "k": 0o400, "a": 0o400}


def test_the_group_of_a_pod_may_read_secrets_whatever_their_mode(tmp_path: Path) -> None:
    maker = VolumeMaker(tmp_path, STORED, {}, group=os.getgid())
    secret = {"secretName": "keys", "defaultMode": 0o400}
    made = maker.make([{"name": "keys", "secret": secret}])["keys"]
    assert isinstance(made, Path)
    assert stat.S_IMODE((made / "k").stat().st_mode) == 0o440


def test_what_is_not_there_is_an_error(maker: VolumeMaker) -> None:
    with pytest.raises(KeyError, match="no configMap like"):
        maker.make([{"name": "c", "configMap": {"name": "lost"}}])
    with pytest.raises(KeyError, match="does not know its kind"):
        maker.make([{"name": "d", "nfs": {}}])


def test_mounts_are_files_folders_or_memory(maker: VolumeMaker) -> None:
    volumes = maker.make(
        [
            {"name": "config", "configMap": {"name": "config"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "model", "persistentVolumeClaim": {"claimName": "weights"}},
        ]
    )
    file = {"name": "config", "mountPath": "/etc/a.yaml", "subPath": "a.yaml", "readOnly": True}
    container = {
        "volumeMounts": [
            file,
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "model", "mountPath": "/models"},
        ]
    }
    assert mounts_of(container, volumes) == [
        Mount("/etc/a.yaml", maker.folder / "volumes/config/a.yaml", read_only=True),
        Mount("/dev/shm", None, size=64 << 20),
        Mount("/models", Path("/weights/")),
    ]


def test_mounts_within_mounts_come_behind_them() -> None:
    mounts = [Mount("/a/b", None), Mount("/a", None)]
    script = root_script(Path("/root"), mounts, read_only=True, then=["true"])
    assert script.index("/root/a\n") < script.index("/root/a/b\n")
    assert "remount,ro" in script


@pytest.mark.parametrize(("text", "size"), [("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("1k", 1000)])
def test_quantities(text: str, size: int) -> None:
    assert quantity_bytes(text) == size
    with pytest.raises(ValueError, match="64 MiB"):
        quantity_bytes("64 MiB")


def test_a_restricted_container_loses_its_capabilities() -> None:
    container: dict[str, Any] = {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        }
    }
    options = privileges({}, container)
    assert "--bounding-set=-all,+ipc_lock" in options
    assert "--no-new-privs" in options
