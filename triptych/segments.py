"""Token ids of texts that come again with more behind them, as conversations do, turn by turn.

Special tokens cut a prompt into segments that are tokenised by themselves anyway, so a segment's
ids can be kept: encode(a + "<|im_end|>" + b) == encode(a) + [id] + encode(b), bit for bit. Where
that does not hold for a tokenizer, nothing is kept.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections import OrderedDict
from typing import Any

import tokenizers

_MAX_CHARS = 1 << 24  # of all segments kept: some 16 MB of text, and as much of ids
_ENTRY_CHARS = 256  # so many more of each: short segments take more memory than their text
# These look at the piece that they are given and at nothing else. Metaspace, for one, treats the
# beginning of the whole text in another way.
_LOCAL = frozenset({"Sequence", "Split", "ByteLevel", "Digits"})


class SegmentCache:
    """Encodes without adding special tokens. May be shared between threads."""

    def __init__(self, backend: tokenizers.Tokenizer, max_chars: int = _MAX_CHARS) -> None:
        self._backend = backend
        self._max_chars = max_chars
        self._boundary = boundary_of(backend)
        added = backend.get_added_tokens_decoder()
        self._special_ids = {token.content: token_id for token_id, token in added.items()}
        self._kept: OrderedDict[tuple[str, str], array[int]] = OrderedDict()  # latest use last
        self._num_chars = 0
        self._lock = threading.Lock()

    def encode(self, text: str, scope: str = "") -> list[int]:
        """What other scopes encoded is not used, so that none learns of another's texts by time."""
        if self._boundary is None:
            return self._fresh(text)
        ids: list[int] = []
        # Segments and the special tokens between them, in turn.
        for number, part in enumerate(self._boundary.split(text)):
            if number % 2:
                ids.append(self._special_ids[part])
            elif part:
                ids += self._segment(part, scope)
        return ids

    def _segment(self, text: str, scope: str) -> array[int]:
        key = scope, text
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        ids = array("I", self._fresh(text))
        with self._lock:
            if key not in self._kept:
                self._kept[key] = ids
                self._num_chars += _ENTRY_CHARS + len(text)
            while self._num_chars > self._max_chars:
                (_, oldest), _ = self._kept.popitem(last=False)
                self._num_chars -= _ENTRY_CHARS + len(oldest)
        return ids

    def _fresh(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids


def boundary_of(backend: tokenizers.Tokenizer) -> re.Pattern[str] | None:
    """A special token where a text may be cut, as a group; None: it must be encoded as a whole."""
    added = backend.get_added_tokens_decoder().values()
    # They are looked for in the text as it is, before anything else happens to it.
    first = [token for token in added if not token.normalized]
    if any(token.lstrip or token.rstrip or token.single_word for token in first):
        return None  # those reach into what stands beside them
    if not first or not _kinds(backend.pre_tokenizer) <= _LOCAL:
        return None
    if getattr(backend.model, "dropout", None):
        return None
    longest_first = sorted((token.content for token in first), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


def _kinds(pre_tokenizer: Any) -> set[str]:
    """Its type and those of its parts."""

    def walk(settings: dict[str, Any]) -> set[str]:
        parts = settings.get("pretokenizers", ())
        return {settings["type"]}.union(*map(walk, parts))

    return set() if pre_tokenizer is None else walk(json.loads(pre_tokenizer.__getstate__()))
