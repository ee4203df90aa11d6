"""When is a container started, ready, alive? Thresholds are pure; one look is `look`."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

_KINDS = {"httpGet", "tcpSocket", "exec"}


@dataclass(frozen=True, slots=True)
class Probe:
    """As in a manifest, with Kubernetes's defaults."""

    action: Mapping[str, Any]  # with httpGet, tcpSocket or exec
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Probe:
        """Raises KeyError for a kind of probe that this stand-in does not know."""
        if not manifest.keys() & _KINDS:
            raise KeyError(f"probe {dict(manifest)}: this stand-in knows {sorted(_KINDS)}")
        return cls(
            manifest,
            manifest.get("initialDelaySeconds", 0),
            manifest.get("periodSeconds", 10),
            manifest.get("timeoutSeconds", 1),
            manifest.get("successThreshold", 1),
            manifest.get("failureThreshold", 3),
        )


class Verdict(enum.Enum):
    PENDING = "pending"  # neither threshold was reached
    GOOD = "good"
    BAD = "bad"


@dataclass(slots=True)
class Tally:
    """Looks of one probe in a row. The verdict stays until the other threshold is reached."""

    probe: Probe
    verdict: Verdict = Verdict.PENDING
    _good: int = 0
    _bad: int = 0

    def add(self, good: bool) -> Verdict:
        self._good = self._good + 1 if good else 0
        self._bad = 0 if good else self._bad + 1
        if self._good >= self.probe.success_threshold:
            self.verdict = Verdict.GOOD
        elif self._bad >= self.probe.failure_threshold:
            self.verdict = Verdict.BAD
        return self.verdict


def port_number(port: int | str, container: Mapping[str, Any]) -> int:
    """Of a port by its name or number. Raises KeyError."""
    if isinstance(port, int):
        return port
    for each in container.get("ports") or ():
        if each.get("name") == port:
            return int(each["containerPort"])
    raise KeyError(f"container {container['name']} has no port {port}")


async def look(probe: Probe, container: Mapping[str, Any], address: str) -> bool:
    """From the node, as the kubelet does; `exec` is the caller's."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            if "httpGet" in probe.action:
                return await _http(probe.action["httpGet"], container, address)
            port = port_number(probe.action["tcpSocket"]["port"], container)
            _, writer = await asyncio.open_connection(address, port)
            writer.close()
            return True
    except (OSError, TimeoutError, httpx.HTTPError):
        return False


async def _http(get: Mapping[str, Any], container: Mapping[str, Any], address: str) -> bool:
    port = port_number(get["port"], container)
    url = f"{get.get('scheme', 'HTTP').lower()}://{get.get('host', address)}:{port}"
    headers = {each["name"]: each["value"] for each in get.get("httpHeaders") or ()}
    # Kubernetes checks no certificate here.
    async with httpx.AsyncClient(verify=False, trust_env=False) as http:
        reply = await http.get(url + get.get("path", "/"), headers=headers)
    return 200 <= reply.status_code < 400


def back_off_s(restarts: int) -> float:
    """Before the n-th start of a container: none, then 10 s, 20 s … 300 s (the kubelet's)."""
    return 0.0 if restarts < 2 else min(300.0, 10.0 * 2 ** (restarts - 2))
