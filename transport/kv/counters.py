"""What carried the bytes: counters of the machine around a transfer of known size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Carrier = Literal["rdma", "network", "memory"]

_NET_DEV = Path("/proc/net/dev")
_INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class ByteCounters:
    """Bytes this machine (this network namespace) received so far."""

    network: int  # by all interfaces, loopback included
    rdma: int  # by all RDMA ports; their adapters do not count these as network bytes

    def since(self, earlier: ByteCounters) -> ByteCounters:
        return ByteCounters(self.network - earlier.network, self.rdma - earlier.rdma)


def read_counters() -> ByteCounters:
    lines = _NET_DEV.read_text().splitlines()[2:]  # two lines of titles
    network = sum(int(line.partition(":")[2].split()[0]) for line in lines)
    ports = _INFINIBAND.glob("*/ports/*/counters/port_rcv_data")
    return ByteCounters(network, sum(4 * int(port.read_text()) for port in ports))


def carrier_of(moved: ByteCounters, size: int) -> Carrier:
    """Who carried a transfer of `size` bytes, given what the counters moved meanwhile.

    Others' traffic only ever adds: "memory" is certain, the rest is worth asking more than once.
    """
    if moved.rdma >= size // 2:
        return "rdma"
    return "network" if moved.network >= size // 2 else "memory"
