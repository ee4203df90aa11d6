"""An order of workers that is a session's own: the same at every router and at every turn."""

from __future__ import annotations

import xxhash


def preference(session: str, worker_id: str) -> int:
    """Highest first (rendezvous hashing): a worker that comes or goes moves nobody else's session.
    Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.
    """
    return xxhash.xxh3_64_intdigest(f"{session}\0{worker_id}".encode())
