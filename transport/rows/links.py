"""The links by name, and the first one that leads to a worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transport.rows.base import RowsUnusable
from transport.rows.hello import Offer
from transport.rows.library import RowsLibrary
from transport.rows.segment import Doorbell
from transport.rows.session import OnLost, RowsLink, RowsSession
from transport.rows.shm import ShmRowsLink
from transport.rows.tcp import TcpRowsLink

LINK_NAMES = ("shm", "tcp")  # the better one first


def make_links(
    names: Iterable[str], library: RowsLibrary, run_dir: Path, host: str = "127.0.0.1"
) -> list[RowsLink]:
    """Raises ValueError on a name that is none of LINK_NAMES."""
    links: list[RowsLink] = []
    for name in names:
        match name:
            case "shm":
                links.append(ShmRowsLink(library, run_dir))
            case "tcp":
                links.append(TcpRowsLink(library, host))
            case _:
                raise ValueError(f"no link for rows is called {name!r}; there are {LINK_NAMES}")
    return links


def connect_first(
    links: Sequence[RowsLink],
    endpoints: Mapping[str, str],
    offer: Offer,
    doorbell: Doorbell,
    on_lost: OnLost,
) -> RowsSession:
    """Over the first link that both sides have and that works. `endpoints`: by the link's name.

    Raises RowsUnusable with every link's reason; RowsRefused and WorkerGone at once: another link
    leads to the same worker.
    """
    reasons = []
    for link in links:
        if link.name not in endpoints:
            continue
        try:
            return link.connect(endpoints[link.name], offer, doorbell, on_lost)
        except RowsUnusable as error:
            reasons.append(f"{link.name}: {error}")
    raise RowsUnusable("; ".join(reasons) or "the worker offers no link that we have")
