"""Executes the Dockerfile without a Docker engine, and runs what it made: `make image-check`.

Every stage is a stack of overlay directories on this machine's own root, which stands in for BASE;
RUN lines are executed in a chroot, as they are written. What BASE would bring is not installed
(apt-get is skipped). The result runs as the image's user: root read-only, no compiler, no
capabilities, no new privileges. Needs Linux, root, Python as in BASE, g++, and the package index.

    python k8s/image/try_build.py [--arg TORCH_WHEELS=/opt/wheels] [--keep]
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
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
USER = 10001
COMPILERS = ("gcc", "g++", "cc", "c++", "clang", "clang++", "cpp", "as", "ld")
SKIPPED = re.compile(r"apt-get ")  # what BASE would get; this machine has it
PYTHON = Path(sys.base_prefix) / "bin"
HIDDEN = ("/work", "/home", "/tmp")  # of this machine; an image has nothing there


@dataclass
class Stage:
    """Its own layer lies on those of its ancestors."""

    name: str
    folder: Path
    parent: Stage | None
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    steps: list[tuple[str, str]] = field(default_factory=list)  # (instruction, value)
    built: bool = False

    @property
    def layers(self) -> list[Path]:
        """Uppermost first; this machine's root is not among them."""
        return [self.folder / "layer", *(self.parent.layers if self.parent else [])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arg", action="append", default=[], help="a build argument, NAME=VALUE")
    parser.add_argument("--keep", action="store_true", help="leave the stages behind")
    options = parser.parse_args()
    given = dict(item.split("=", 1) for item in options.arg)
    scratch = Path(tempfile.mkdtemp(prefix="image-", dir="/var/tmp"))
    report: dict[str, object] = {}
    try:
        stages = read_stages(HERE / "Dockerfile", scratch, {"MODEL": "smollm2-135m", **given})
        for target, check in (("router", check_router), ("cpu", check_cpu)):
            began = time.monotonic()
            build(stages[target], stages)
            built = time.monotonic()
            report[target] = {"build_s": round(built - began, 1), **check(stages[target])}
            report[target] |= {"check_s": round(time.monotonic() - built, 1)}  # type: ignore[operator]
    finally:
        if not options.keep:
            shutil.rmtree(scratch, ignore_errors=True)
    print(json.dumps(report))


def read_stages(file: Path, scratch: Path, given: dict[str, str]) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    with open(file, "rb") as content:
        for step in DockerfileParser(fileobj=_copy(content.read(), scratch)).structure:
            kind, value = step["instruction"], step["value"]
            if kind == "FROM":
                parent, _, name = value.partition(" AS ")
                stage = Stage(name, scratch / name, stages.get(parent))
                if stage.parent:
                    stage.env = dict(stage.parent.env)
                (stage.folder / "layer").mkdir(parents=True)
                stages[name] = stage
            elif stage and kind == "ARG":
                name, _, default = value.partition("=")
                stage.args[name] = given.get(name, default.strip('"'))
            elif stage and kind == "ENV":
                stage.env |= dict(item.split("=", 1) for item in shlex.split(value))
            elif stage and kind in ("COPY", "RUN"):
                stage.steps.append((kind, value))
    return stages


def _copy(content: bytes, scratch: Path):  # type: ignore[no-untyped-def]
    """A file that the parser may hold open: it insists on reading and writing."""
    path = scratch / "Dockerfile"
    path.write_bytes(content)
    return open(path, "r+b")


def build(stage: Stage, stages: dict[str, Stage]) -> None:
    """It, what it builds on, and what it copies from, each once."""
    if stage.built:
        return
    if stage.parent:
        build(stage.parent, stages)
    for kind, value in stage.steps:
        if kind == "COPY":
            _do_copy(stage, value, stages)
        elif SKIPPED.search(value):
            print(f"{stage.name}: skipped: {value[:70]}", flush=True)
        else:
            began = time.monotonic()
            inside(stage, value, env={**stage.env, **stage.args}, build=True)
            print(f"{stage.name}: {time.monotonic() - began:5.1f} s  {value[:90]}", flush=True)
    stage.built = True


def _do_copy(stage: Stage, value: str, stages: dict[str, Stage]) -> None:
    words = value.split()
    flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    to = stage.folder / "layer" / target.lstrip("/")
    for source in sources:
        if origin := flags.get("from"):
            build(stages[origin], stages)
            found = next(
                p for p in (x / source.lstrip("/") for x in stages[origin].layers) if p.exists()
            )
        else:
            found = ROOT / source
        if found.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "prebuilt") if not origin else None
            shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, to)
    if owner := flags.get("chown"):
        subprocess.run(["chown", "-R", owner, str(to)], check=True)


def inside(
    stage: Stage, command: str, *, env: dict[str, str], build: bool
) -> subprocess.CompletedProcess[str]:
    """Runs a shell command in the stage; as root with a writable root, or as its user without."""
    mounted = stage.folder / "root"
    work = stage.folder / "work"
    for folder in (mounted, work):
        folder.mkdir(exist_ok=True)
    layers = [str(layer) for layer in stage.layers]
    if build:
        overlay = f"lowerdir={':'.join([*layers[1:], '/'])},upperdir={layers[0]},workdir={work}"
    else:
        overlay = f"lowerdir={':'.join([*layers, '/'])}"  # no upper one: read-only
    script = ["set -e", f"mount -t overlay overlay -o {overlay} {mounted}"]
    script += [f"mount --rbind /dev {mounted}/dev", f"mount -t proc proc {mounted}/proc"]
    script += [f"mount -t tmpfs tmpfs {mounted}{hidden}" for hidden in (*HIDDEN, "/run")]
    become = ""
    if not build:
        script += [f"mount --bind /dev/null {mounted}{path}" for path in _compilers()]
        script += [
            f"mount -t tmpfs tmpfs {mounted}/dev/shm",
            f"mount -t tmpfs tmpfs {mounted}/root",
        ]
        script += [_reachable_python(mounted), f"install -d -o {USER} {mounted}/run/triptych"]
        become = f"setpriv --reuid={USER} --regid={USER} --clear-groups --no-new-privs "
        become += "--inh-caps=-all --bounding-set=-all "
    script += [f"exec chroot {mounted} {become}/bin/sh -c {shlex.quote('cd /tmp && ' + command)}"]
    path = f"{PYTHON}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    pip = (
        {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        if build
        else {}
    )
    env = {**pip, **env, "PATH": env.get("PATH", "$PATH").replace("$PATH", path)}
    done = subprocess.run(
        ["unshare", "--mount", "--fork", "--pid", "--kill-child", "sh", "-c", "\n".join(script)],
        env=env, capture_output=not build, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{stage.name}: {command}\n{done.stdout or ''}{done.stderr or ''}")
    return done


def _reachable_python(mounted: Path) -> str:
    """BASE's Python is everybody's; one below /root is shown to the user by a bind mount."""
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/root"):
        return "true"
    return f"mkdir -p {mounted}{prefix} && mount --bind {prefix} {mounted}{prefix}"


def _compilers() -> list[str]:
    found = {shutil.which(name) for name in COMPILERS}
    found |= {str(path) for name in COMPILERS for path in Path("/usr/bin").glob(f"*{name}-[0-9]*")}
    return sorted({os.path.realpath(path) for path in found if path})


def check_router(stage: Stage) -> dict[str, object]:
    """Serves without torch: it listens, and says that it has no worker yet."""
    code = (
        "import importlib.util as u, json, subprocess, sys, time, urllib.error, urllib.request\n"
        "assert u.find_spec('torch') is None, 'the router has torch'\n"
        "argv = [sys.executable, '-m', 'router', '--config', '/tmp/c.yaml', '--run-dir', '/run/triptych']\n"
        "open('/tmp/c.yaml', 'w').write('router: {port: 8765}\\n')\n"
        "router = subprocess.Popen(argv)\n"
        "for _ in range(600):\n"
        "    try: urllib.request.urlopen('http://127.0.0.1:8765/live'); break\n"
        "    except OSError: time.sleep(0.1); assert router.poll() is None\n"
        "try: urllib.request.urlopen('http://127.0.0.1:8765/ready'); raise SystemExit('ready alone?')\n"
        "except urllib.error.HTTPError as error: assert error.code == 503\n"
        "router.terminate(); assert router.wait(30) == 0\n"
    )
    inside(stage, f"python -c {shlex.quote(code)}", env=stage.env, build=False)
    return {"venv_mb": _size_mb(stage), "packages": _packages(stage), "torch": False}


def check_cpu(stage: Stage) -> dict[str, object]:
    """The weights in the image answer; the kernels are those of the image."""
    probe = (
        "import shutil; from triptych_kernels.cpu.native import native;"
        f"assert not any(map(shutil.which, {COMPILERS!r})), 'a compiler is left';"
        "print(native().level.name, native().dll._name)"
    )
    level, library = inside(
        stage, f"python -c {shlex.quote(probe)}", env=stage.env, build=False
    ).stdout.split()
    assert library.startswith("/opt/venv/"), library
    ask = (
        "triptych up --port 0 --run-dir /run/triptych --set kv.memory=64MiB --max-tokens 16 --exit"
    )
    answer = inside(
        stage, f"{ask} --prompt 'Why is the sky blue?'", env=stage.env, build=False
    ).stdout
    print(answer)
    ready = re.search(r"ready in ([\d.]+) s", answer)
    assert ready and "16 tokens" in answer, answer
    return {
        "venv_mb": _size_mb(stage),
        "packages": _packages(stage),
        "level": level,
        "ready_s": float(ready[1]),
    }


def _size_mb(stage: Stage) -> int:
    files = (stage.folder / "layer/opt/venv").rglob("*")
    return sum(path.lstat().st_size for path in files if not path.is_dir()) // 1_000_000


def _packages(stage: Stage) -> int:
    """In the bill of materials."""
    return len(
        json.loads((stage.folder / "layer/opt/venv/sbom.cdx.json").read_text())["components"]
    )


if __name__ == "__main__":
    main()
