"""A cluster whose workers are on the nodes of a Ray cluster: `triptych up --launcher ray`.

Routers run here, beside the launcher, where users look for them. For each pool there is a placement
group, for each worker an actor that starts the same process that the local launcher would start.
Ray finds places and notices lost nodes; tokens and KV go from process to process, as always.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from transport.address import host_port
from triptych.config import ClusterConfig
from triptych.errors import ConfigError
from triptych.launch.base import LaunchError
from triptych.launch.child import Kept
from triptych.launch.local import LocalLauncher
from triptych.launch.plan import ProcessSpec
from triptych.launch.ray_child import RayChild
from triptych.launch.ray_host import Seat
from triptych.launch.ray_places import Places, places_of

_NAMESPACE = "triptych"


class RayLauncher(LocalLauncher):
    """See LocalLauncher. `address`: of the Ray cluster, "auto" for the one that runs here, "local"
    to start one here.
    """

    def __init__(
        self, config: ClusterConfig, run_dir: Path, *, address: str = "auto", **options: Any
    ) -> None:
        super().__init__(config, run_dir, **options)
        self._address = address
        self._places = {places.pool: places for places in places_of(config)}
        self._groups: dict[str, Any] = {}
        self._registries: dict[str, str] = {}  # gRPC targets of routers, by name
        _check_installed()

    def node(self, name: str) -> str | None:
        """Ray's id of the node where a worker was seen last."""
        child = next(child for child in self._children if child.spec.name == name)
        assert isinstance(child, RayChild), "routers are here"
        return child.node

    async def _prepare(self) -> None:
        host = await self._resources.enter_async_context(_joined(self._address))
        for name in self._config.router.names:
            self._registries[name] = host_port(host, _free_port(host))
        for places in self._places.values():
            self._groups[places.pool] = _group(places)
            self._resources.callback(_remove, self._groups[places.pool])

    def _make_child(self, spec: ProcessSpec, mark: str) -> Kept:
        if spec.role == "router":
            where = ("--registry-listen", self._registries[spec.name])
            return super()._make_child(replace(spec, argv=(*spec.argv, *where)), mark)
        pool, _, index = spec.name.rpartition("-")
        return RayChild(
            spec,
            Seat(
                config=self._config,
                name=spec.name,
                registries=tuple(self._registries.values()),
                back_off=self._back_off,
                margin_s=self._margin_s,
            ),
            self._places[pool],
            self._groups[pool],
            int(index),
            may_restart=lambda: self._started_up,
            report=self._hear,
        )


@contextlib.asynccontextmanager
async def _joined(address: str) -> AsyncIterator[str]:
    """This machine's address in the Ray cluster. Raises LaunchError where there is none."""
    import ray

    def join() -> str:
        ray.init(
            address=address,
            namespace=_NAMESPACE,
            log_to_driver=False,
            logging_level=logging.WARNING,
            include_dashboard=False if address == "local" else None,
        )
        return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]

    try:
        host = await asyncio.to_thread(join)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise LaunchError(
            f"--ray-address {address}: no Ray cluster there ({str(error).splitlines()[0]}); start "
            "one with `ray start --head`, or say --ray-address local"
        ) from error
    try:
        yield host
    finally:
        await asyncio.to_thread(ray.shutdown)


def _group(places: Places) -> Any:
    from ray.util.placement_group import placement_group

    bundles = [dict(places.each) for _ in range(places.replicas)]
    return placement_group(bundles, strategy=places.strategy)


def _remove(group: Any) -> None:
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(group)


def _free_port(host: str) -> int:
    """For a router, which keeps it over restarts: workers know it by this port."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


def _check_installed() -> None:
    try:
        import ray  # noqa: F401 - only here is it known that it will be needed
    except ImportError as error:
        raise ConfigError(
            f'--launcher ray: {error}; install it with `pip install "triptych-runtime[ray]"`'
        ) from error
