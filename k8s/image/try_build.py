"""Executes the Dockerfile without a Docker engine, and runs what it made: `make image-check`.

Every stage is an overlay on this machine's own root, which stands in for BASE; RUN lines are
executed in a chroot, as they are written. What BASE would bring is not installed (apt-get is
skipped). The result runs as the image's user: root read-only, no compiler, no capabilities, no new
privileges. Needs Linux, root, Python as in BASE, g++, and the package index.

    python k8s/image/try_build.py [--arg TORCH_WHEELS=/opt/wheels] [--keep]

The last line is a JSON object: seconds, megabytes and packages of each image.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
USER = 10001
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "clang++", "cpp", "as", "ld")
PYTHON = Path(sys.base_prefix)  # stands in for BASE's
HIDDEN = ("work", "home", "tmp", "run")  # of this machine; an image has nothing there

# Run in the router's image, as its user.
LISTENS = """
import importlib.util, pathlib, subprocess, sys, time, urllib.error, urllib.request

assert importlib.util.find_spec("torch") is None, "the router has torch"
config = pathlib.Path("/tmp/c.yaml")
config.write_text("router: {port: 8765}")
argv = [sys.executable, "-m", "router", "--config", str(config), "--run-dir", "/run/triptych"]
router = subprocess.Popen(argv)
while True:
    try:
        urllib.request.urlopen("http://127.0.0.1:8765/live")
        break
    except OSError:
        assert router.poll() is None, "the router ended"
        time.sleep(0.1)
try:
    urllib.request.urlopen("http://127.0.0.1:8765/ready")
    raise SystemExit("ready without a worker")
except urllib.error.HTTPError as error:
    assert error.code == 503
router.terminate()
assert router.wait(30) == 0
"""
KERNELS = f"""
import shutil
from triptych_kernels.cpu.native import native

assert not any(map(shutil.which, {COMPILERS!r})), "a compiler is left"
print(native().level.name, native().dll._name)
"""
ASK = (
    "triptych up --port 0 --run-dir /run/triptych --set kv.memory=64MiB --exit --max-tokens 16 "
    "--prompt 'Why is the sky blue?'"
)


@dataclass
class Stage:
    """Its layer, what it has on top of this machine's root, begins as a copy of its parent's."""

    name: str
    folder: Path
    parent: Stage | None
    env: dict[str, str]
    args: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)  # (COPY or RUN, what)
    built: bool = False

    @property
    def layer(self) -> Path:
        return self.folder / "layer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arg", action="append", default=[], help="a build argument, NAME=VALUE")
    parser.add_argument("--keep", action="store_true", help="leave the stages behind")
    options = parser.parse_args()
    arguments = {"MODEL": "smollm2-135m"} | dict(item.split("=", 1) for item in options.arg)
    scratch = Path(tempfile.mkdtemp(prefix="image-", dir="/var/tmp"))
    checks: dict[str, Callable[[Stage], dict[str, object]]] = {
        "router": check_router,
        "cpu": check_cpu,
    }
    report = {}
    try:
        stages = read_stages(HERE / "Dockerfile", scratch, arguments)
        for target, check in checks.items():
            began = time.monotonic()
            build(stages[target], stages)
            spent = {"build_s": round(time.monotonic() - began, 1)}
            report[target] = spent | contents(stages[target]) | check(stages[target])
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(report))


def read_stages(file: Path, scratch: Path, arguments: Mapping[str, str]) -> dict[str, Stage]:
    """By name, in the order of the file."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for step in DockerfileParser(str(file)).structure:
        kind, value = step["instruction"], step["value"]
        if kind == "FROM":
            base, _, name = value.partition(" AS ")
            parent = stages.get(base)
            stage = Stage(name, scratch / name, parent, dict(parent.env) if parent else {})
            stages[name] = stage
        elif stage and kind == "ARG":
            name, _, default = value.partition("=")
            stage.args[name] = arguments.get(name, default.strip('"'))
        elif stage and kind == "ENV":
            stage.env |= dict(item.split("=", 1) for item in shlex.split(value))
        elif stage and kind in ("COPY", "RUN"):
            stage.steps.append((kind, value))
    return stages


def build(stage: Stage, stages: Mapping[str, Stage]) -> None:
    """It, what it builds on, and what it copies from, each once."""
    if stage.built:
        return
    stage.folder.mkdir()
    if stage.parent:
        build(stage.parent, stages)
        subprocess.run(["cp", "-a", str(stage.parent.layer), str(stage.layer)], check=True)
    else:
        stage.layer.mkdir()
    for kind, value in stage.steps:
        began = time.monotonic()
        if kind == "COPY":
            do_copy(stage, value, stages)
        elif value.startswith("apt-get "):
            print(f"{stage.name}: skipped, is BASE's business: {value[:60]}", flush=True)
        else:
            inside(stage, value, building=True)
            print(f"{stage.name}: {time.monotonic() - began:5.1f} s  {value[:80]}", flush=True)
    stage.built = True


def do_copy(stage: Stage, value: str, stages: Mapping[str, Stage]) -> None:
    words = shlex.split(value)
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    to = stage.layer / target.lstrip("/")
    origin = flags.get("from")
    if origin:
        build(stages[origin], stages)
    for source in sources:
        found = stages[origin].layer / source.lstrip("/") if origin else ROOT / source
        if found.is_dir():
            ignore = None if origin else shutil.ignore_patterns("__pycache__", "prebuilt")
            shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, to)
    if owner := flags.get("chown"):
        subprocess.run(["chown", "-R", owner, str(to)], check=True)


def inside(stage: Stage, command: str, *, building: bool = False) -> str:
    """What a shell command prints in the stage: as root while building, else as the image runs."""
    root, work = stage.folder / "root", stage.folder / "work"
    for folder in (root, work):
        folder.mkdir(exist_ok=True)
    script = [
        "set -e",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={stage.layer},workdir={work} {root}",
        f"mount --rbind /dev {root}/dev",
        f"mount -t proc proc {root}/proc",
        *(f"mount -t tmpfs tmpfs {root}/{name}" for name in HIDDEN),
        *([] if building else _restrictions(root)),
    ]
    user = f"setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs"
    become = "" if building else f"{user} --inh-caps=-all --bounding-set=-all "
    script.append(f"exec chroot {root} {become}/bin/sh -c {shlex.quote(f'cd /tmp && {command}')}")
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", "\n".join(script)],
        env=_environment(stage, building),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{stage.name}: {command}\n{done.stdout}{done.stderr}")
    return done.stdout


def _restrictions(root: Path) -> list[str]:
    found = {shutil.which(name) for name in COMPILERS}
    found |= {str(path) for name in COMPILERS for path in Path("/usr/bin").glob(f"*{name}-[0-9]*")}
    compilers = sorted({os.path.realpath(path) for path in found if path})
    # BASE's Python is everybody's; one in /root is shown to the user all the same.
    python = f"mkdir -p {root}{PYTHON} && mount --bind {PYTHON} {root}{PYTHON}"
    return [
        *(f"mount --bind /dev/null {root}{compiler}" for compiler in compilers),
        f"mount -t tmpfs tmpfs {root}/dev/shm",
        *([f"mount -t tmpfs tmpfs {root}/root", python] if PYTHON.is_relative_to("/root") else []),
        f"install -d -o {USER} {root}/run/triptych",
        f"mount -o remount,ro {root}",
    ]


def _environment(stage: Stage, building: bool) -> dict[str, str]:
    system = f"{PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    env = stage.env | {"PATH": stage.env.get("PATH", "$PATH").replace("$PATH", system)}
    if not building:
        return env
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    return pip | env | stage.args


def contents(stage: Stage) -> dict[str, object]:
    files = (stage.layer / "opt/venv").rglob("*")
    size = sum(path.lstat().st_size for path in files if not path.is_dir())
    bill = json.loads((stage.layer / "opt/venv/sbom.cdx.json").read_text())
    return {"venv_mb": size // 1_000_000, "packages": len(bill["components"])}


def check_router(stage: Stage) -> dict[str, object]:
    """Listens without torch, and says that it has no worker yet."""
    inside(stage, f"python -c {shlex.quote(LISTENS)}")
    return {"torch": False}


def check_cpu(stage: Stage) -> dict[str, object]:
    """The kernels are those of the image, and so are the weights that answer."""
    level, library = inside(stage, f"python -c {shlex.quote(KERNELS)}").split()
    assert library.startswith("/opt/venv/"), library
    answer = inside(stage, ASK)
    print(answer)
    ready = re.search(r"ready in ([\d.]+) s", answer)
    assert ready and "16 tokens" in answer, answer
    return {"level": level, "ready_s": float(ready[1])}


if __name__ == "__main__":
    main()
