"""Endpoints: what a source publishes for one link, as JSON whose meaning is private to the link."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transport.kv.base import LinkUnusable
from transport.kv.region import RegionShape


def parse_endpoint(text: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """Raises LinkUnusable naming the field that is missing or of another type."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise LinkUnusable(f"the endpoint is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise LinkUnusable("the endpoint is not a JSON object")
    for name, kind in fields.items():
        if not isinstance(values.get(name), kind):
            raise LinkUnusable(f"the endpoint's {name!r} is not a {kind.__name__}")
    return values


def check_shapes(peer: RegionShape, ours: RegionShape) -> None:
    """Offsets in a block mean the same on both sides only when the blocks are equally large."""
    if peer.block_bytes != ours.block_bytes:
        raise LinkUnusable(
            f"the peer's blocks have {peer.block_bytes} bytes, ours {ours.block_bytes}"
        )


def boot_id() -> str:
    """Names this boot of this machine: equal ids share memory."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
