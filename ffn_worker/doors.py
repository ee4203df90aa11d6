"""The links over which homes may send rows to this worker."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transport.rows.base import RowsUnusable
from transport.rows.inbox import Inbox
from transport.rows.session import RowsLink, RowsServer
from triptych.errors import ConfigError

log = logging.getLogger(__name__)


def open_doors(links: Sequence[RowsLink], inbox: Inbox, epoch: int) -> dict[str, RowsServer]:
    """By the names of the links that work here. Raises ConfigError when none does."""
    servers = dict[str, RowsServer]()
    reasons = []
    for link in links:
        try:
            servers[link.name] = link.serve(inbox, dict, epoch)
        except RowsUnusable as error:
            log.warning("rows are not taken over %s: %s", link.name, error)
            reasons.append(f"{link.name}: {error}")
    if not servers:
        raise ConfigError(f"experts.links: none works here: {'; '.join(reasons)}")
    return servers
