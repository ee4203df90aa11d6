"""Which units this worker offers, and who knows that. On the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from triptych.experts.units import Unit


@dataclass(slots=True, eq=False)
class FollowerView:
    """One open Follow call."""

    worker_id: str
    known: int = -1  # the version that none of its new rows contradicts


@dataclass(slots=True)
class Offer:
    """Versions grow by one. Followers are told, and tell when they go by it."""

    units: frozenset[Unit] = frozenset()
    version: int = 0
    _followers: set[FollowerView] = field(default_factory=set)
    _news: asyncio.Event = field(default_factory=asyncio.Event)  # exchanged at every change

    @property
    def num_followers(self) -> int:
        return len(self._followers)

    def change(self, *, add: Iterable[Unit] = (), remove: Iterable[Unit] = ()) -> int:
        """The new version."""
        self.units = (self.units | frozenset(add)) - frozenset(remove)
        self.version += 1
        self._spread()
        return self.version

    def join(self, worker_id: str) -> FollowerView:
        follower = FollowerView(worker_id)
        self._followers.add(follower)
        return follower

    def leave(self, follower: FollowerView) -> None:
        self._followers.discard(follower)
        self._spread()

    def heard(self, follower: FollowerView, version: int) -> None:
        follower.known = max(follower.known, version)
        self._spread()

    async def newer(self, version: int) -> int:
        """Waits for a version after this one."""
        while self.version <= version:
            await self._news.wait()
        return self.version

    async def known_by(self, follower: FollowerView, version: int) -> None:
        """Waits until this follower goes by no older version."""
        while follower.known < version:
            await self._news.wait()

    async def known(self, version: int) -> None:
        """Waits until no follower goes by an older version."""
        while any(follower.known < version for follower in self._followers):
            await self._news.wait()

    def _spread(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
