"""How pods and we find each other: names, and addresses of Services, by what is ready."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from triptych.testing.hosts import Network
from triptych.testing.kubelet.pod import Pod
from triptych.testing.kubelet.probes import port_number
from triptych.testing.kubelet.services import NameServer, ServiceProxy
from triptych.testing.kubelet.variables import Manifest

DOMAIN = "cluster.local"


@dataclass(slots=True)
class Doors:
    """The Services of one namespace."""

    network: Network
    names: NameServer
    namespace: str
    _addresses: dict[str, str] = field(default_factory=dict)  # of Services that are not headless
    _proxies: dict[tuple[str, int], ServiceProxy] = field(default_factory=dict)
    _open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(200))

    @property
    def resolver(self) -> str:
        """resolv.conf of pods."""
        search = " ".join(f"{part}{DOMAIN}" for part in (f"{self.namespace}.svc.", "svc.", ""))
        return f"nameserver {self.network.gateway}\nsearch {search}\noptions ndots:5\n"

    def url_of(self, service: str, port: int) -> str:
        """Raises KeyError for a headless Service, and one that there is not."""
        return f"http://{self._addresses[service]}:{port}"

    async def open(self, service: Manifest) -> None:
        """An address, and a proxy per port, unless it is headless. Idempotent."""
        name, spec = service["metadata"]["name"], service["spec"]
        if spec.get("clusterIP") == "None":
            return
        if name not in self._addresses:
            self._addresses[name] = await self.network.add_address(next(self._numbers))
        for port in spec["ports"]:
            key = (name, port["port"])
            if key not in self._proxies:
                proxy = self._proxies[key] = ServiceProxy()
                await self._open.enter_async_context(
                    proxy.serving(self._addresses[name], port["port"])
                )

    def update(self, services: Sequence[Manifest], pods: Sequence[Pod]) -> None:
        """Who is behind each name and each address now. All of them were opened."""
        records: dict[str, list[str]] = {}
        for service in services:
            name = service["metadata"]["name"]
            zone = f"{name}.{self.namespace}.svc.{DOMAIN}"
            behind = [pod for pod in pods if leads_to(service, pod)]
            if name not in self._addresses:
                records[zone] = [pod.address for pod in behind]
                records |= {f"{pod.identity.name}.{zone}": [pod.address] for pod in behind}
                continue
            records[zone] = [self._addresses[name]]
            for port in service["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                self._proxies[name, port["port"]].targets = [
                    (pod.address, _port_of(pod, target)) for pod in behind
                ]
        self.names.records = records

    async def close(self) -> None:
        self.names.records = {}
        await self._open.aclose()
        self._proxies.clear()
        for address in self._addresses.values():
            await self.network.drop_address(address)
        self._addresses.clear()


def leads_to(service: Manifest, pod: Pod) -> bool:
    spec = service["spec"]
    serves = spec.get("publishNotReadyAddresses", False) or (pod.ready and not pod.stopping)
    chosen = spec["selector"].items() <= dict(pod.identity.labels).items()
    return bool(pod.address and serves and chosen)


def _port_of(pod: Pod, port: int | str) -> int:
    for container in pod.spec["containers"]:
        with contextlib.suppress(KeyError):
            return port_number(port, container)
    raise KeyError(f"{pod.identity.name} has no port {port}")
