"""The command line of a worker process."""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.config import ClusterConfig, PoolConfig, Role, load_config
from triptych.errors import ConfigError
from triptych.launch.rundir import RunDir


@dataclass(frozen=True, slots=True)
class WorkerArgs:
    config: ClusterConfig
    pool: PoolConfig
    worker_id: str
    epoch: int  # random per process start: peers tell a restarted worker from the old one
    run_dir: Path
    listen: str  # gRPC address to bind
    registries: tuple[str, ...]  # gRPC targets of the routers
    kv_host: str  # address on which other hosts may read this worker's KV, or send it rows (tcp)
    domain: str = ""  # what fails together with this worker: its host


def parse_worker_args(role: Role, argv: Sequence[str] | None = None) -> WorkerArgs:
    """Raises ConfigError, e.g. when the pool is of another role."""
    parser = argparse.ArgumentParser(prog=f"python -m {role}_worker")
    parser.add_argument("--config", type=Path, required=True, help="cluster config (YAML)")
    parser.add_argument("--pool", required=True, help="the config's pool that this worker is in")
    parser.add_argument("--id", required=True, help="unique worker id, e.g. decode-0")
    parser.add_argument("--run-dir", type=Path, required=True, help="the cluster's sockets")
    parser.add_argument("--listen", help="gRPC address (default: a unix socket in the run dir)")
    parser.add_argument(
        "--registry",
        action="append",
        help="a router's gRPC target; may be given several times (default: those in the run dir)",
    )
    parser.add_argument("--kv-host", default="127.0.0.1", help="address of tcp links")
    parser.add_argument(
        "--domain", default=socket.gethostname(), help="failure domain (default: this host)"
    )
    options = parser.parse_args(argv)
    config = load_config(options.config)
    pool = config.pool(options.pool)
    place = RunDir(options.run_dir)
    if pool.role != role:
        raise ConfigError(f"pool {pool.name!r} is for {pool.role} workers, this is a {role} worker")
    return WorkerArgs(
        config=config,
        pool=pool,
        worker_id=options.id,
        epoch=secrets.randbits(63) | 1,
        run_dir=options.run_dir,
        listen=options.listen or place.socket(options.id),
        registries=tuple(options.registry or map(place.socket, config.router.names)),
        kv_host=options.kv_host,
        domain=options.domain,
    )
