"""Which processes a config means. Pure: values in, values out; the launchers do the deeds."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from triptych.config import ClusterConfig, PoolConfig, Role, parse_config
from triptych.errors import ConfigError
from triptych.launch.machine import usable_cores
from triptych.launch.rundir import RunDir

# What makes a process ready. "listening": it wrote router.json and answers there.
# "attached": the router counts it among its workers.
ReadyWhen = Literal["listening", "attached"]


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run. The name is also the worker's id and the name of its log file."""

    name: str
    role: Literal["router"] | Role
    argv: tuple[str, ...]
    env: Mapping[str, str]  # set on top of the launcher's own environment
    ready: ReadyWhen


def plan(config: ClusterConfig, run_dir: Path, *, cores: int | None = None) -> list[ProcessSpec]:
    """The routers, then the workers in the order of the config.

    `cores` is what a worker with `threads: 0` uses; default: those of this machine. Raises
    ConfigError when `run_dir` is too long to hold sockets.
    """
    cores = cores or usable_cores()
    threads = {pool.name: pool.threads or cores for pool in config.pools}
    wanted = sum(threads[pool.name] * pool.replicas for pool in config.pools)
    place = RunDir(run_dir)
    specs = [_router(name, place) for name in config.router.names]
    for pool in config.pools:
        env = _thread_env(threads[pool.name], crowded=wanted > cores)
        specs += _workers(pool, place, env)
    for spec in specs:
        place.check_socket(spec.name)
    return specs


def scale_pool(config: ClusterConfig, role: Role, replicas: int) -> ClusterConfig:
    """The same cluster with `replicas` workers of one role; adds the pool if there is none.

    Raises ConfigError when several pools have that role, or when the result is no valid cluster.
    """
    data: dict[str, Any] = config.model_dump(exclude_unset=True)
    pools: list[dict[str, Any]] = [pool.model_dump(exclude_unset=True) for pool in config.pools]
    matching = [pool for pool in pools if pool["role"] == role]
    if len(matching) > 1:
        names = ", ".join(pool["name"] for pool in matching)
        raise ConfigError(
            f"--{role} {replicas}: several pools do {role} ({names}); set their replicas"
        )
    if matching:
        matching[0]["replicas"] = replicas
    else:
        pools.append({"name": role, "role": role, "replicas": replicas})
    return parse_config(data | {"pools": pools})


def with_port(spec: ProcessSpec, port: int) -> ProcessSpec:
    """The same router, on `port`."""
    return replace(spec, argv=(*spec.argv, "--port", str(port)))


def _router(name: str, place: RunDir) -> ProcessSpec:
    where = ("--config", str(place.config_file), "--run-dir", str(place.path))
    argv = (sys.executable, "-m", "router", "--id", name, *where)
    return ProcessSpec(name, "router", argv, _thread_env(1, crowded=False), "listening")


def _workers(pool: PoolConfig, place: RunDir, env: Mapping[str, str]) -> Iterator[ProcessSpec]:
    for index in range(pool.replicas):
        name = f"{pool.name}-{index}"
        who = ("--pool", pool.name, "--id", name)
        where = ("--config", str(place.config_file), "--run-dir", str(place.path))
        argv = (sys.executable, "-m", f"{pool.role}_worker", *who, *where)
        yield ProcessSpec(name, pool.role, argv, env, "attached")


def _thread_env(threads: int, *, crowded: bool) -> Mapping[str, str]:
    env = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",  # the last words of a dying process reach its log
        "PYTHONSAFEPATH": "1",  # a folder named `router` where the user stands is not our router
    }
    if crowded:
        # More threads than cores: one that spins at a barrier takes the core that its team mate
        # needs. On 2 cores, two workers of 2 threads did 2 to 15 times fewer matmuls that way.
        env["OMP_WAIT_POLICY"] = "PASSIVE"
    return env
