"""The command line of a worker process."""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transport.address import host_port
from triptych.config import ClusterConfig, PoolConfig, Role, load_config
from triptych.errors import ConfigError
from triptych.launch.machine import interface_address
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
    metrics_host: str = "127.0.0.1"  # where /metrics, /live and /ready are served
    metrics_port: int = 0  # 0: any free one
    # gRPC targets of pools whose workers are not in the run directory
    peers: Mapping[str, Sequence[str]] = field(default_factory=dict)


def parse_worker_args(role: Role, argv: Sequence[str] | None = None) -> WorkerArgs:
    """Raises ConfigError, e.g. when the pool is of another role."""
    parser = argparse.ArgumentParser(prog=f"python -m {role}_worker")
    parser.add_argument("--config", type=Path, required=True, help="cluster config (YAML)")
    parser.add_argument("--pool", required=True, help="the config's pool that this worker is in")
    parser.add_argument("--id", required=True, help="unique worker id, e.g. decode-0")
    parser.add_argument("--run-dir", type=Path, required=True, help="the cluster's sockets")
    parser.add_argument(
        "--host",
        help="this worker's address for others: gRPC, KV and metrics are served on it "
        "(default: none; a unix socket in the run dir, metrics on 127.0.0.1)",
    )
    parser.add_argument("--port", type=int, default=0, help="of gRPC, with --host")
    parser.add_argument(
        "--metrics-port", type=int, default=0, help="of /metrics, /live and /ready (default: any)"
    )
    parser.add_argument("--listen", help="gRPC address, instead of --host and --port")
    parser.add_argument(
        "--registry",
        action="append",
        help="a router's gRPC target; may be given several times (default: those in the run dir)",
    )
    parser.add_argument(
        "--kv-host", help="address, or network interface, of tcp links (default: as --host)"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="POOL=TARGET",
        help="gRPC target of a worker of a draft pool; may be given several times "
        "(default: sockets in the run dir)",
    )
    parser.add_argument(
        "--domain", default=socket.gethostname(), help="failure domain (default: this host)"
    )
    options = parser.parse_args(argv)
    config = load_config(options.config)
    pool = config.pool(options.pool)
    place = RunDir(options.run_dir)
    if pool.role != role:
        raise ConfigError(f"pool {pool.name!r} is for {pool.role} workers, this is a {role} worker")
    own_host = options.host or "127.0.0.1"
    listen = place.socket(options.id)
    if options.host:
        listen = host_port(options.host, options.port)
    return WorkerArgs(
        config=config,
        pool=pool,
        worker_id=options.id,
        epoch=secrets.randbits(63) | 1,
        run_dir=options.run_dir,
        listen=options.listen or listen,
        registries=tuple(options.registry or map(place.socket, config.router.names)),
        kv_host=interface_address(options.kv_host or own_host),
        domain=options.domain,
        metrics_host=own_host,
        metrics_port=options.metrics_port,
        peers=_peers(config, options.peer),
    )


def _peers(config: ClusterConfig, given: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Raises ConfigError for what is not POOL=TARGET, or names no pool."""
    peers: dict[str, list[str]] = {}
    for item in given:
        name, _, target = item.partition("=")
        if not target:
            raise ConfigError(f"--peer {item}: expected POOL=TARGET, e.g. draft=10.0.0.7:7000")
        peers.setdefault(config.pool(name).name, []).append(target)
    return peers
