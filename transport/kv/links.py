"""The links by name, and all proven paths to one peer."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from transport.kv.base import KvLink, KvLinkError, KvSession, LinkUnusable
from transport.kv.nixl import NixlLink
from transport.kv.paths import takes
from transport.kv.region import Region
from transport.kv.shm import ShmLink
from transport.kv.tcp import TcpLink


def make_links(names: Sequence[str], run_dir: Path, *, host: str = "127.0.0.1") -> list[KvLink]:
    """Links in order of taste. `host`: the address that the tcp link serves on.

    Opens nothing yet. Raises ValueError for a name that is not "shm", "tcp" or "nixl".
    """
    return [_make_link(name, run_dir, host) for name in names]


MAX_ATTEMPTS = 3


class PeerLinks:
    """One session per link with one peer (one boot epoch), opened on first use. Thread-safe.

    After an error the next use connects anew. A link that turned out unusable, or did not connect
    MAX_ATTEMPTS times in a row, is not tried again.
    """

    def __init__(
        self,
        links: Sequence[KvLink],
        endpoints: Mapping[str, str],
        region: Region,
        require: str | None = None,
    ) -> None:
        """endpoints: link name → what the peer published. require: the only path to accept."""
        self._links = {link.name: link for link in links}
        self._endpoints = endpoints
        self._region = region
        self._require = require
        self._opening = {name: threading.Lock() for name in self._links}
        self._sessions: dict[str, KvSession] = {}
        self._failures = dict.fromkeys(self._links, 0)  # to connect, since the last success
        self._reasons = {
            name: "the peer does not serve it" for name in self._links if name not in endpoints
        }
        for name in self._links:
            if require is not None and not takes(require, name):
                self._reasons.setdefault(name, f"{require} is required")

    def usable(self) -> list[str]:
        """Names of the links that may work, in order of taste; those not tried yet among them.

        Raises LinkUnusable when a path is required and its link cannot be used.
        """
        names = [name for name in self._links if name not in self._reasons]
        if self._require is not None and not names:
            raise LinkUnusable(f"{self._require} is required, but {self._all_reasons()}")
        return names

    def session(self, name: str) -> KvSession:
        """Opens it if need be, which takes a second or so for NIXL. Raises KvLinkError."""
        with self._opening[name]:
            known = self._sessions.get(name)
            if known is not None and known.alive:
                return known
            if known is not None:
                del self._sessions[name]
                known.close()
            session = self._open(name)
            self._sessions[name] = session
            return session

    def reasons(self) -> dict[str, str]:
        """Why a link is not usable, by name."""
        return dict(self._reasons)

    def broken(self) -> bool:
        """Whether a session that was opened has lost its peer."""
        return any(not session.alive for session in list(self._sessions.values()))

    def close(self) -> None:
        """Fences every transfer and ends the sessions."""
        for name, opening in self._opening.items():
            with opening:
                session = self._sessions.pop(name, None)
                self._reasons.setdefault(name, "closed")
            if session is not None:
                session.close()

    def _open(self, name: str) -> KvSession:
        if name in self._reasons:
            raise LinkUnusable(f"{name}: {self._reasons[name]}")
        try:
            session = self._links[name].connect(self._endpoints[name], self._region)
            if self._require is not None and not takes(session.path, self._require):
                session.close()
                raise LinkUnusable(f"it takes {session.path}, {self._require} is required")
        except KvLinkError as error:
            self._failures[name] += 1
            if isinstance(error, LinkUnusable) or self._failures[name] >= MAX_ATTEMPTS:
                self._reasons[name] = str(error)
            raise
        self._failures[name] = 0
        return session

    def _all_reasons(self) -> str:
        return "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())


def _make_link(name: str, run_dir: Path, host: str) -> KvLink:
    match name:
        case "shm":
            return ShmLink(run_dir)
        case "tcp":
            return TcpLink(host)
        case "nixl":
            return NixlLink()
    raise ValueError(f"unknown KV link {name!r}; there are shm, tcp and nixl")
