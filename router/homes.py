"""Open links to workers, and what this router has under way on each. Lives on one event loop.

A channel belongs to one (worker id, epoch): a restarted worker gets a new one, without the old
one's back-off. On it there is one link at a time; one that broke is replaced by the next request.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import TypeVar

import grpc

from router.home_watch import Key, key_of
from router.link import HomeLink, HomeLost
from router.place import Placement
from transport.channel import connect
from transport.registry import WorkerView

_K = TypeVar("_K", bound=Hashable)


class Homes:
    def __init__(self) -> None:
        self._channels: dict[Key, grpc.aio.Channel] = {}
        self._links: dict[Key, HomeLink] = {}
        self._open: Counter[Key] = Counter()  # requests
        self._choices: Counter[str] = Counter()  # by home's worker id
        self._prefilling: Counter[str] = Counter()  # prompt tokens by prefill worker's id

    @property
    def choices(self) -> Mapping[str, int]:
        return self._choices

    @property
    def prefilling(self) -> Mapping[str, int]:
        return self._prefilling

    @contextlib.contextmanager
    def visit(self, placement: Placement, choices: int) -> Iterator[HomeLink]:
        """The way to the placement's home; counts as a request there until the block ends."""
        view = placement.decode
        key = key_of(view)
        with _counted(self._open, key, 1), _counted(self._choices, view.worker_id, choices):
            yield self._link(key, view.address)

    @contextlib.contextmanager
    def prefill(self, placement: Placement, prompt_tokens: int) -> Iterator[None]:
        """Counts the prompt as queued on the placement's prefill worker until the block ends."""
        if placement.prefill is None:
            yield
            return
        with _counted(self._prefilling, placement.prefill.worker_id, prompt_tokens):
            yield

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


@contextlib.contextmanager
def _counted(counter: Counter[_K], key: _K, amount: int) -> Iterator[None]:
    counter[key] += amount
    try:
        yield
    finally:
        counter[key] -= amount
        if not counter[key]:
            del counter[key]
