"""The router process: OpenAI's API in front, workers behind.

    python -m router --config cluster.yaml --run-dir DIR

Workers attach to `<run-dir>/router.sock`. `<run-dir>/router.json` appears when HTTP is served and
holds {"url", "registry", "pid"}. Several routers of one cluster (`router.replicas`) are told apart
by `--id`, which these files are named after; they share nothing but the workers. SIGTERM or SIGINT:
no new connections, open requests get `drain_s`, exit 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop

from router.admission.admission import Admission
from router.api import create_app
from router.balance import ExpertBalancer
from router.index.make import IndexParts, make_index
from router.metrics import RouterMetrics
from router.placement import POLICIES, objectives
from router.relay import Relay
from router.server import HttpServer, announced, listen, url_of
from router.services import Services
from router.vllm_aliases import VllmAliases
from transport import kv_feed
from transport.channel import start_server
from transport.protos import worker_pb2_grpc
from transport.registry import Change, Directory
from triptych.config import ClusterConfig, ExpertsConfig, load_config
from triptych.errors import ConfigError, TriptychError
from triptych.hub import resolve_model
from triptych.launch.rundir import RunDir
from triptych.obs.metrics import new_registry
from triptych.startup import set_up_process
from triptych.tokenizer import Tokenizer
from triptych.wire import to_status

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterArgs:
    config: ClusterConfig
    name: str  # one of config.router.names
    port: int  # of HTTP; 0: any free one
    place: RunDir
    registry_listen: str  # gRPC address


def main(argv: Sequence[str] | None = None) -> None:
    try:
        args = parse_args(argv)
        flush_traces = set_up_process(args.config, args.name)
        tokenizer = Tokenizer.load(resolve_model(args.config.model))
        uvloop.run(serve(args, tokenizer))
        flush_traces()
    except TriptychError as error:
        sys.exit(f"router: {error}")


def parse_args(argv: Sequence[str] | None = None) -> RouterArgs:
    parser = argparse.ArgumentParser(prog="python -m router")
    parser.add_argument("--config", type=Path, required=True, help="cluster config (YAML)")
    parser.add_argument("--run-dir", type=Path, required=True, help="sockets and router.json")
    parser.add_argument(
        "--registry-listen", help="gRPC address for workers (default: a socket in the run dir)"
    )
    parser.add_argument("--id", default="router", help="which of the cluster's routers this is")
    parser.add_argument("--port", type=int, help="of HTTP (default: by the config)")
    options = parser.parse_args(argv)
    config = load_config(options.config)
    names = config.router.names
    # Whoever numbers routers from 0 need not know that the first one has no number.
    name = names[0] if options.id == "router-0" else options.id
    if name not in names:
        raise ConfigError(f"--id {name}: router.replicas allows {', '.join(names)}")
    place = RunDir(options.run_dir)
    return RouterArgs(
        config=config,
        name=name,
        port=config.router.port_of(name) if options.port is None else options.port,
        place=place,
        registry_listen=options.registry_listen or place.socket(name),
    )


async def serve(args: RouterArgs, tokenizer: Tokenizer) -> None:
    """Until a signal. Raises ConfigError when an address cannot be had."""
    config = args.config
    metrics = RouterMetrics(new_registry())
    index = make_index(config.router.index, metrics.registry)
    balances = args.name == config.router.names[0]  # two would order each other's moves back
    async with directory(args.registry_listen, config.experts, index, balances=balances) as (
        workers,
        registry,
    ):
        metrics.watch_workers(lambda role: sum(view.role == role for view in workers.workers()))
        admission = Admission(config, workers.workers, metrics)
        if config.metrics.vllm_aliases:
            VllmAliases(metrics, config.served_name, workers.workers, admission.num_queued)
        relay = Relay(
            workers,
            POLICIES[config.router.placement],
            model=config.served_name,
            config=config.router,
            metrics=metrics,
            prefixes=index.prefixes,
            slo=objectives(config.router.slo),
        )
        services = Services(
            config=config,
            tokenizer=tokenizer,
            workers=workers.workers,
            relay=relay,
            metrics=metrics,
            admission=admission,
            started=int(time.time()),
        )
        server = HttpServer(create_app(services), drain_s=config.drain_s)
        try:
            await _serve_http(server, args, registry)
        finally:
            await relay.close()


@contextlib.asynccontextmanager
async def directory(
    address: str, experts: ExpertsConfig, index: IndexParts, *, balances: bool = True
) -> AsyncIterator[tuple[Directory, str]]:
    """A registry that workers can attach to, and its real address. It `balances` the FFN workers
    among them, and hears what the others publish of their caches.
    """
    balancer = ExpertBalancer(lambda: workers.workers(), experts.rebalance_s, experts.copies)

    def on_change(change: Change) -> None:
        _log_change(change)
        balancer.on_change(change)
        index.prefixes.on_change(change)

    workers = Directory(on_change=on_change, on_experts=balancer.on_experts)

    def register(server: grpc.aio.Server) -> None:
        add: Any = worker_pb2_grpc.add_RegistryServicer_to_server
        add(workers, server)
        if index.feed is not None:
            add_feed: Any = worker_pb2_grpc.add_KvFeedServicer_to_server
            add_feed(index.feed, server)

    names = ["triptych.Registry", *([kv_feed.SERVICE_NAME] if index.feed else [])]
    try:
        running = await start_server(address, [register], names, to_status)
    except (OSError, ValueError) as error:
        raise ConfigError(f"registry: {error}") from error
    balancing = asyncio.create_task(balancer.run() if balances else _nothing())
    try:
        yield workers, running.address
    finally:
        balancing.cancel()
        await asyncio.wait({balancing})
        workers.close()
        if index.feed is not None:
            index.feed.close()
        await running.stop(grace_s=1.0)


async def _nothing() -> None:
    """Another router's business."""


async def _serve_http(server: HttpServer, args: RouterArgs, registry: str) -> None:
    def leave() -> None:
        _log.info("draining", extra={"fields": {"limit_s": args.config.drain_s}})
        server.leave()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave)
    listener = listen(args.config.router.host, args.port)
    url = url_of(listener)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    heard = asyncio.create_task(server.listening.wait())
    await asyncio.wait({serving, heard}, return_when=asyncio.FIRST_COMPLETED)
    heard.cancel()
    with announced(args.place.router_file(args.name), url=url, registry=registry):
        gc.freeze()  # what was loaded stays; looking through it again would stop every stream
        _log.info("listening", extra={"fields": {"url": url, "registry": registry}})
        await serving
    _log.info("stopped")


def _log_change(change: Change) -> None:
    fields = {"worker": change.worker.worker_id, "role": change.worker.role}
    _log.info("worker %s", change.kind, extra={"fields": fields})


if __name__ == "__main__":
    main()
