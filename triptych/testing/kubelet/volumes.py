"""What a container sees of files: the image, its volumes, a root that may be read-only."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.testing.kubelet.variables import Stored

_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)
}
_MODE = 0o644  # of files of ConfigMaps and Secrets
_ETC = ("passwd", "group", "nsswitch.conf", "ld.so.cache", "ssl", "alternatives", "localtime")


@dataclass(frozen=True, slots=True)
class Image:
    """In place of a container image: folders of this machine, read-only, and an environment."""

    files: Mapping[str, Path]  # by their path in the container
    env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_checkout(cls, checkout: Path, home: Path) -> Image:
        """Our code, this Python and its packages. `home`: models and compiled kernels.

        Pods share this machine's cores, so their threads sleep while they wait.
        """
        python = {prefix: Path(prefix) for prefix in (sys.base_prefix, sys.prefix)}
        env = {
            "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin",
            "PYTHONPATH": "/opt/triptych/code:/opt/triptych/code/kernels",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRIPTYCH_HOME": "/opt/triptych/home",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        return cls(python | {"/opt/triptych/code": checkout, "/opt/triptych/home": home}, env)


@dataclass(frozen=True, slots=True)
class Mount:
    target: str
    source: Path | None  # a file or folder of this machine; None: memory
    read_only: bool = False
    size: int = 64 << 20  # bytes, of memory


@dataclass(frozen=True, slots=True)
class VolumeMaker:
    """Makes volumes of one pod in `folder`."""

    folder: Path
    stored: Stored
    claims: Mapping[str, Path]  # persistent volumes by claim
    group: int | None  # fsGroup

    def make(self, volumes: Iterable[Mapping[str, Any]]) -> dict[str, Path | int]:
        """By name: where it is, or how large a memory volume is. Raises KeyError."""
        return {volume["name"]: self._make(volume) for volume in volumes}

    def _make(self, volume: Mapping[str, Any]) -> Path | int:
        place = self.folder / "volumes" / str(volume["name"])
        if (volume.get("emptyDir") or {}).get("medium") == "Memory":
            # Half of the node's memory is Kubernetes's default.
            return quantity_bytes(volume["emptyDir"].get("sizeLimit", "1Gi"))
        if "emptyDir" in volume:
            place.mkdir(parents=True)
            place.chmod(0o2777)
            self._give(place)
            return place
        if "persistentVolumeClaim" in volume:
            return self.claims[volume["persistentVolumeClaim"]["claimName"]]
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        place.mkdir(parents=True)
        self._project(volume, place)
        return place

    def _project(self, volume: Mapping[str, Any], place: Path) -> None:
        projected = volume.get("projected")
        if projected is None:
            self._copy(volume, place, _MODE)
            return
        for source in projected["sources"]:
            self._copy(source, place, projected.get("defaultMode", _MODE))

    def _copy(self, volume: Mapping[str, Any], place: Path, mode: int) -> None:
        """Keys to files; `mode` is theirs where neither the volume nor its items have one."""
        for kind, key, groups in (
            ("configMap", "name", self.stored.config_maps),
            ("secret", "secretName", self.stored.secrets),
        ):
            if kind in volume:
                origin = volume[kind]
                found = groups.get(origin.get(key) or origin["name"], {})
                if not found and not origin.get("optional"):
                    raise KeyError(f"volume {volume.get('name')}: no {kind} like {origin}")
                self._write(found, {"defaultMode": mode, **origin}, place)
                return
        raise KeyError(f"volume {dict(volume)}: this stand-in does not know its kind")

    def _write(self, values: Mapping[str, bytes], origin: Mapping[str, Any], place: Path) -> None:
        items = origin.get("items") or [{"key": key, "path": key} for key in values]
        for item in items:
            file = place / item["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(values[item["key"]])
            mode = item.get("mode", origin["defaultMode"])
            # The kubelet lets the pod's group read, whatever the mode says.
            file.chmod(mode if self.group is None else mode | 0o440)
            self._give(file)

    def _give(self, path: Path) -> None:
        if self.group is not None and users_are_ours():
            os.chown(path, -1, self.group)


def mounts_of(container: Mapping[str, Any], volumes: Mapping[str, Path | int]) -> list[Mount]:
    """Raises KeyError for a volume that the pod does not have."""
    found = []
    for mount in container.get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        target, read_only = mount["mountPath"], mount.get("readOnly", False)
        if isinstance(volume, int):
            found.append(Mount(target, None, read_only, volume))
        else:
            found.append(Mount(target, volume / mount.get("subPath", ""), read_only))
    return found


def image_mounts(image: Image, hosts: Path, resolver: Path) -> list[Mount]:
    """The image, and what a container runtime puts over it."""
    files = [Mount(target, source, read_only=True) for target, source in image.files.items()]
    etc = [Path("/etc") / name for name in _ETC]
    system = [path for path in (Path("/usr"), *etc) if path.exists()]
    return [
        *(Mount(str(path), path, read_only=True) for path in system),
        Mount("/sys", Path("/sys"), read_only=True),
        Mount("/dev", Path("/dev")),
        Mount("/dev/shm", None),
        Mount("/etc/hosts", hosts, read_only=True),
        Mount("/etc/resolv.conf", resolver, read_only=True),
        *files,
    ]


def root_script(
    root: Path, mounts: Iterable[Mount], *, read_only: bool, then: Sequence[str]
) -> str:
    """For a shell in a mount namespace of its own: makes a root at `root`, runs `then` in it.

    Of mounts on the same path the later one wins.
    """
    lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755 root {_at(root, '')}"]
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            lines.append(f"ln -s {shlex.quote(os.readlink(f'/{name}'))} {_at(root, name)}")
    by_target = {mount.target: mount for mount in mounts}
    for target in sorted(by_target):
        lines += _mount_lines(root, by_target[target])
    proc = _at(root, "proc")
    lines += [f"mkdir -p {proc} {_at(root, 'tmp')}", f"mount -t proc proc {proc}"]
    if read_only:
        lines.append(f"mount -o remount,ro {_at(root, '')}")
    lines.append(f"exec chroot {_at(root, '')} {shlex.join(then)}")
    return "\n".join(lines)


def _mount_lines(root: Path, mount: Mount) -> list[str]:
    target = _at(root, mount.target)
    if mount.source is None:
        options = f"size={mount.size},mode=1777" + (",ro" if mount.read_only else "")
        return [f"mkdir -p {target}", f"mount -t tmpfs -o {options} memory {target}"]
    place = [f"mkdir -p {target}"]
    if not mount.source.is_dir():
        parent = _at(root, str(Path(mount.target).parent))
        place = [f"mkdir -p {parent}", f"[ -e {target} ] || : > {target}"]
    lines = [*place, f"mount --rbind {shlex.quote(str(mount.source))} {target}"]
    if mount.read_only:
        lines.append(f"mount -o remount,bind,ro {target}")
    return lines


def _at(root: Path, path: str) -> str:
    return shlex.quote(str(root / path.lstrip("/")))


def quantity_bytes(text: str | int) -> int:
    """Raises ValueError."""
    found = re.fullmatch(r"([0-9.]+)([kMGT]?|[KMGT]i)", str(text))
    if not found:
        raise ValueError(f"{text!r} is no quantity that this stand-in knows, e.g. 64Mi")
    return int(float(found[1]) * _UNITS[found[2]])


def privileges(pod: Mapping[str, Any], container: Mapping[str, Any]) -> list[str]:
    """The command that takes on the user and the capabilities of the security contexts."""
    context = {**(pod.get("securityContext") or {}), **(container.get("securityContext") or {})}
    options = ["setpriv", "--inh-caps=-all"]
    capabilities = context.get("capabilities") or {}
    if "ALL" in (capabilities.get("drop") or ()):
        kept = [f"+{name.lower()}" for name in capabilities.get("add") or ()]
        options.append("--bounding-set=" + ",".join(["-all", *kept]))
    if not context.get("allowPrivilegeEscalation", True):
        options.append("--no-new-privs")
    user = context.get("runAsUser")
    if user is not None and users_are_ours():
        group = context.get("runAsGroup", 0)
        extra = context.get("fsGroup", group)
        options += [f"--reuid={user}", f"--regid={group}", f"--groups={extra}"]
    return [*options, "--"]


def users_are_ours() -> bool:
    """False in a user namespace that maps one user alone: then everything runs as that one."""
    return Path("/proc/self/uid_map").read_text().split()[2] == str(2**32 - 1)
