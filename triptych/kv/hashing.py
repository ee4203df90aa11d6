"""What a KV block is: a hash chain over everything its content depends on. No torch: routers use it
too.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from hashlib import blake2b

DIGEST_BYTES = 16


def root_hash(*, model: str, weights: str, layout: str, salt: str = "") -> bytes:
    """The parent of a prompt's first block.

    `weights` is the weight version: KV of other weights can never be found. `salt` separates
    tenants.
    """
    identity = json.dumps([model, weights, layout, salt], ensure_ascii=False)
    return blake2b(identity.encode(), digest_size=DIGEST_BYTES).digest()


def extend_hashes(
    hashes: list[bytes], tokens: Sequence[int], block_tokens: int, root: bytes
) -> None:
    """Appends the hashes of the full blocks of `tokens` that `hashes` does not have yet.

    A cryptographic hash: with a plain one, a crafted prompt could be served another tenant's KV.
    """
    for index in range(len(hashes), len(tokens) // block_tokens):
        parent = hashes[-1] if hashes else root
        ids = array("I", tokens[index * block_tokens : (index + 1) * block_tokens])
        hashes.append(blake2b(ids.tobytes(), digest_size=DIGEST_BYTES, key=parent).digest())
