from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import tokenizers

from triptych.segments import SegmentCache, boundary_of
from triptych.testing import tiny_tokenizers

_PARTS = [
    "the",
    " ",
    "th",
    "\n",
    "é",
    "日 本",
    "<tool>",
    "<|im_end|>",
    "<|im_start|>",
    "<s>",
    "▁",
    "a",
]


class _Counting:
    """A backend that notes what it was asked for."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    def encode(self, text: str, *, add_special_tokens: bool) -> tokenizers.Encoding:
        self.asked.append(text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens)


@pytest.fixture
def backend() -> _Counting:
    return _Counting(tiny_tokenizers.byte_level())


def _cache(backend: _Counting, **limits: int) -> SegmentCache:
    return SegmentCache(backend, **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [tiny_tokenizers.byte_level, tiny_tokenizers.sentencepiece, tiny_tokenizers.metaspace]
)
def test_ids_are_those_of_the_text_as_a_whole(make: Callable[[], tokenizers.Tokenizer]) -> None:
    backend, draw = make(), random.Random(0)
    cache = SegmentCache(backend, max_chars=1000)
    for _ in range(500):
        text = "".join(draw.choices(_PARTS, k=draw.randrange(12)))
        assert cache.encode(text) == backend.encode(text, add_special_tokens=False).ids


def test_the_longest_special_token_wins_where_one_begins_with_another() -> None:
    backend = tiny_tokenizers.byte_level()
    backend.add_special_tokens(["<|im_end|>the"])
    text = "the<|im_end|>the<|im_end|> the"
    assert SegmentCache(backend).encode(text) == backend.encode(text, add_special_tokens=False).ids


def test_only_the_new_turn_of_a_conversation_is_encoded(backend: _Counting) -> None:
    cache = _cache(backend)
    first = "<|im_start|>the the<|im_end|>"
    cache.encode(first)
    backend.asked.clear()
    cache.encode(first + "<|im_start|>th<|im_end|>")
    assert backend.asked == ["th"]


def test_scopes_share_nothing(backend: _Counting) -> None:
    cache = _cache(backend)
    cache.encode("the<s>", scope="acme")
    backend.asked.clear()
    cache.encode("the<s>", scope="other")
    assert backend.asked == ["the"]


def test_what_was_used_last_is_kept(backend: _Counting) -> None:
    cache = _cache(backend, max_chars=2 * 259)
    for text in ("aaa", "bbb", "aaa", "ccc"):
        cache.encode(text)
    backend.asked.clear()
    cache.encode("aaa<s>bbb")
    assert backend.asked == ["bbb"]


def test_tokenizers_that_look_beyond_a_segment_encode_texts_as_a_whole() -> None:
    assert boundary_of(tiny_tokenizers.metaspace()) is None
    backend = tiny_tokenizers.byte_level()
    assert boundary_of(backend) is not None
    backend.add_tokens([tokenizers.AddedToken("<pad>", lstrip=True, special=True)])
    assert boundary_of(backend) is None
