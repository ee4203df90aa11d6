"""How much of a prompt a worker holds already."""

from __future__ import annotations

from typing import NamedTuple


class PrefixHit(NamedTuple):
    """Leading blocks of the prompt. Blocks are the worker's own, of its `block_tokens`."""

    blocks: int  # that can be read at once
    host_blocks: int = 0  # that follow them in slower memory
