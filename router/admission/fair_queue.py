"""Who is next: weighted fair queueing between tenants, priorities and deadlines inside of one.

Between tenants this is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), with tokens
as the length of a request. Virtual time is the start tag of the request that went last; a tenant's
next request starts at max(virtual time, its last finish tag) and finishes `cost / weight` later;
the smallest start tag goes first. While two tenants are both backlogged, what they got per weight
differs by at most

    largest cost of one / its weight + largest cost of the other / its weight

whatever their requests look like. A tenant that was away gains no credit, and of what it got while
nobody else wanted it, it owes for the last request at most.

The cost of an answer is known at its end only. `settle` corrects the tenant's tag then, as the
counters of VTC do (Sheng et al., OSDI 2024); the bound then holds for what was charged by that
time.

Inside a tenant the smallest *due time* goes first:

    due = min(deadline, arrival + aging) + priority * aging

Equal priorities: earliest deadline first, without deadlines in order of arrival. A step of priority
is worth `aging` seconds of waiting. A due time never changes and later arrivals have later ones, so
nobody starves.

Pure: no clock, no I/O. Costs are tokens, times are seconds.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(slots=True)
class _Entry(Generic[_T]):
    tenant: str
    due: float
    number: int  # in order of arrival; breaks ties
    cost: float
    item: _T

    @property
    def key(self) -> tuple[float, int]:
        return self.due, self.number


@dataclass(slots=True)
class _Flow(Generic[_T]):
    """One tenant."""

    weight: float
    finish: float = 0.0  # tag of what it got last
    entries: list[_Entry[_T]] = field(default_factory=list)  # by due time
    queued: float = 0.0  # cost of the entries


class FairQueue(Generic[_T]):
    """Items are hashable and are in here once at most."""

    def __init__(self, weights: Mapping[str, float], aging_s: float) -> None:
        self._flows: dict[str, _Flow[_T]] = {
            name: _Flow(weight) for name, weight in weights.items()
        }
        self._backlogged: dict[str, _Flow[_T]] = {}
        self._entries: dict[_T, _Entry[_T]] = {}
        self._aging_s = aging_s
        self._virtual = 0.0
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, item: _T) -> bool:
        return item in self._entries

    def __iter__(self) -> Iterator[_T]:
        return iter(self._entries)

    def queued(self, tenant: str) -> tuple[int, float]:
        """Items of this tenant, and their cost."""
        flow = self._flows[tenant]
        return len(flow.entries), flow.queued

    def due(self, arrived: float, priority: int, deadline: float) -> float:
        return min(deadline, arrived + self._aging_s) + priority * self._aging_s

    def push(self, item: _T, tenant: str, cost: float, due: float) -> None:
        flow = self._flows[tenant]
        if not flow.entries:
            flow.finish = max(flow.finish, self._virtual)
            self._backlogged[tenant] = flow
        self._arrivals += 1
        entry = _Entry(tenant, due, self._arrivals, cost, item)
        insort(flow.entries, entry, key=_key)
        flow.queued += cost
        self._entries[item] = entry

    def head(self) -> _T:
        """The next one. There must be one."""
        return self._first().item

    def pop(self) -> _T:
        """Takes the next one. There must be one."""
        entry = self._first()
        self.remove(entry.item)
        self.charge(entry.tenant, entry.cost)
        return entry.item

    def remove(self, item: _T) -> None:
        """It leaves without having cost anything."""
        entry = self._entries.pop(item)
        flow = self._flows[entry.tenant]
        del flow.entries[bisect_left(flow.entries, entry.key, key=_key)]
        flow.queued -= entry.cost
        if not flow.entries:
            flow.queued = 0.0
            del self._backlogged[entry.tenant]

    def charge(self, tenant: str, cost: float) -> None:
        """A request of the tenant goes ahead; also for one that never had to wait."""
        flow = self._flows[tenant]
        self._virtual = max(flow.finish, self._virtual)
        flow.finish = self._virtual + cost / flow.weight

    def settle(self, tenant: str, difference: float) -> None:
        """What was charged turned out to cost so much more, or less."""
        flow = self._flows[tenant]
        flow.finish = max(self._virtual, flow.finish + difference / flow.weight)

    def ahead(self, tenant: str, cost: float, due: float) -> float:
        """The cost that would go before a request that came now, should nobody else come.

        Of its own tenant what is due sooner, of another one what its weight buys meanwhile.
        """
        mine = self._flows[tenant]
        end = bisect_left(mine.entries, (due, self._arrivals + 1), key=_key)
        sooner = sum(entry.cost for entry in mine.entries[:end])
        tag = max(mine.finish, self._virtual) + sooner / mine.weight  # where it would start
        others = sum(
            min(flow.queued, max(0.0, tag - flow.finish) * flow.weight + flow.entries[0].cost)
            for name, flow in self._backlogged.items()
            if name != tenant and flow.finish <= tag
        )
        return sooner + others

    def _first(self) -> _Entry[_T]:
        return min(self._backlogged.values(), key=_finish).entries[0]


def _key(entry: _Entry[_T]) -> tuple[float, int]:
    return entry.key


def _finish(flow: _Flow[_T]) -> float:
    # Where its next request starts: for a backlogged tenant the one is the other.
    return flow.finish
