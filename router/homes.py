"""Open links to workers, and what this router has under way on each. Lives on one event loop.

A channel belongs to one (worker id, epoch): a restarted worker gets a new one, without the old
one's back-off. On it there is one link at a time; one that broke is replaced by the next request.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

import grpc

from router.home_watch import Key, key_of
from router.link import HomeLink, HomeLost
from router.placement import Placement
from router.placement.underway import UnderWay
from transport.channel import connect
from transport.registry import WorkerView


class Homes:
    def __init__(self) -> None:
        self._channels: dict[Key, grpc.aio.Channel] = {}
        self._links: dict[Key, HomeLink] = {}
        self._open: Counter[Key] = Counter()  # requests
        self.under_way = UnderWay()

    @contextlib.contextmanager
    def visit(self, placement: Placement, choices: int) -> Iterator[HomeLink]:
        """The way to the placement's home; counts as a request there until the block ends."""
        view = placement.decode
        key = key_of(view)
        with self._counted(key), self.under_way.visit(view.worker_id, choices):
            yield self._link(key, view.address)

    @contextlib.contextmanager
    def _counted(self, key: Key) -> Iterator[None]:
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    async def forget_all_but(self, attached: Iterable[WorkerView]) -> None:
        """Closes the channels of workers that left, unless a call is still open on them."""
        known = {key_of(view) for view in attached}
        for key in [k for k in self._channels if k not in known and not self._open[k]]:
            await self._close(key)

    @property
    def in_use(self) -> list[Key]:
        """Homes with open requests."""
        return list(self._open)

    def give_up(self, key: Key, error: HomeLost) -> None:
        """It hangs: its open requests hear this error; a new one gets a new call."""
        link = self._links.get(key)
        if link is not None and not link.broken:
            link.give_up(error)

    async def close(self) -> None:
        """Ends every open request."""
        for key in list(self._channels):
            await self._close(key)

    def _link(self, key: Key, address: str) -> HomeLink:
        if key not in self._channels:
            self._channels[key] = connect(address)
        link = self._links.get(key)
        if link is None or link.broken:
            link = self._links[key] = HomeLink(self._channels[key])
        return link

    async def _close(self, key: Key) -> None:
        channel, link = self._channels.pop(key), self._links.pop(key, None)
        if link is not None:
            await link.close()
        await channel.close(None)
