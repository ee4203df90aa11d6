"""How much of a prompt a worker holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """Leading blocks of a prompt whose KV a worker need not compute."""

    blocks: int
    host_blocks: int = 0  # further ones, in a slower memory of the worker's
