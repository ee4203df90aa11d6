"""One number for all tokens of a sequence, kept while it grows."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Seq

import xxhash


class ContextHash:
    """xxh3-64 over the tokens as 32-bit numbers, low byte first."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_64()
        self.num_tokens = 0

    def extend(self, tokens: Seq[int]) -> int:
        """The hash of all tokens so far, these included."""
        numbers = array("I", tokens)
        self._digest.update(numbers.tobytes())
        self.num_tokens += len(tokens)
        return self._digest.intdigest()
