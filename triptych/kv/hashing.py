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
    hashes: list[bytes],
    tokens: Sequence[int],
    block_tokens: int,
    root: bytes,
    fork: int | None = None,
) -> None:
    """Appends the hashes of the full blocks of `tokens` that `hashes` does not have yet.

    `fork`: the position from which on KV is not what the same tokens have otherwise. Blocks that
    hold any of it are found by those only who fork there, too.

    A cryptographic hash: with a plain one, a crafted prompt could be served another tenant's KV.
    """
    begin, end = len(hashes) * block_tokens, len(tokens) // block_tokens * block_tokens
    if begin >= end:
        return
    # Routers hash whole prompts. The parent goes in front, not in as a key: a key would be a
    # compression of its own, and BLAKE2 is no weaker without. Parents have one length.
    ids = array("I", tokens[begin:end]).tobytes()
    parent, step = hashes[-1] if hashes else root, 4 * block_tokens
    forked, mark = -1, b""
    if fork is not None:
        forked, mark = 4 * (fork // block_tokens * block_tokens - begin), b"fork %d" % fork
    for start in range(0, len(ids), step):
        if start == forked:
            parent = blake2b(parent + mark, digest_size=DIGEST_BYTES).digest()
        parent = blake2b(parent + ids[start : start + step], digest_size=DIGEST_BYTES).digest()
        hashes.append(parent)
