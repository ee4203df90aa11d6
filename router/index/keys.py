"""Block hashes as the index keeps them: their first eight bytes, as numbers.

Two blocks of a large cluster share a key about never; if they did, a prompt would be placed badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.index.table import Keys
from triptych.errors import RequestError
from triptych.kv.hashing import DIGEST_BYTES
from triptych.kv.journal import KEY_BYTES

_KEY = np.dtype("<u8")


def keys_of(hashes: Sequence[bytes]) -> Keys:
    """In the order of the hashes."""
    words = np.frombuffer(b"".join(hashes), dtype=_KEY)
    return np.ascontiguousarray(words[:: DIGEST_BYTES // KEY_BYTES])


def distinct_keys(packed: bytes) -> Keys:
    """What a worker told, sorted. Raises RequestError for bytes that are no keys."""
    if len(packed) % KEY_BYTES:
        raise RequestError(f"stored, removed: {len(packed)} bytes are no keys of {KEY_BYTES}")
    return np.unique(np.frombuffer(packed, dtype=_KEY))
