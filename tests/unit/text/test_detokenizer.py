from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import RequestError
from triptych.testing import tiny_tokenizers
from triptych.tokenizer import Detokenizer, Tokenizer

_BACKENDS = {
    "byte-level": tiny_tokenizers.byte_level(),
    "sentencepiece": tiny_tokenizers.sentencepiece(),
    "metaspace": tiny_tokenizers.metaspace(),
    "words": tiny_tokenizers.words(),
}
_IDS = st.lists(st.integers(0, 1 << 30), max_size=40)
_TEXT = st.text(st.sampled_from("the  \n\té漢🙂👩‍🚀<|>x7"), max_size=40) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40
)


@pytest.fixture(scope="module", params=_BACKENDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp(kind)
    return Tokenizer.load(tiny_tokenizers.save_folder(folder, _BACKENDS[kind]))


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def lossless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer that has a spelling for every text."""
    folder = tmp_path_factory.mktemp(request.param)
    return Tokenizer.load(tiny_tokenizers.save_folder(folder, _BACKENDS[request.param]))


def _stream(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@given(numbers=_IDS, skip=st.booleans())
def test_a_stream_says_what_decoding_all_at_once_says(
    tokenizer: Tokenizer, numbers: list[int], skip: bool
) -> None:
    ids = [number % tokenizer.vocab_size for number in numbers]
    streamed = "".join(_stream(tokenizer, ids, skip))
    assert streamed == tokenizer.decode(ids, skip_special_tokens=skip)


@given(numbers=_IDS, skip=st.booleans())
def test_decoding_agrees_with_the_tokenizers_library(
    tokenizer: Tokenizer, kind: str, numbers: list[int], skip: bool
) -> None:
    backend = _BACKENDS[kind]
    ids = [number % tokenizer.vocab_size for number in numbers]
    if kind == "sentencepiece":
        # Bytes that are no UTF-8 differ on purpose: see PieceRules.
        ids = [token_id for token_id in ids if tokenizer.token_bytes(token_id).isascii()]
    if kind == "metaspace":
        ids = [1, *ids]  # its decoder drops all spaces of a first token, however many
    expected = backend.decode(ids, skip_special_tokens=skip)
    assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


@given(text=_TEXT)
def test_any_text_survives_the_way_there_and_back(lossless: Tokenizer, text: str) -> None:
    assert lossless.decode(lossless.encode(text), skip_special_tokens=False) == text


@given(text=_TEXT)
def test_no_character_is_ever_cut_in_half_or_kept_longer_than_needed(
    lossless: Tokenizer, text: str
) -> None:
    *pushed, rest = _stream(lossless, lossless.encode(text), skip_special_tokens=False)
    shown = "".join(pushed)
    assert rest == ""
    for end in range(len(pushed)):
        assert text.startswith("".join(pushed[:end]))
    assert shown == text


def test_half_a_character_waits_for_its_other_half(lossless: Tokenizer) -> None:
    detokenizer = Detokenizer(lossless, continues=True)
    texts = [detokenizer.push(token_id) for token_id in lossless.encode("🙂")]
    assert texts[-1] == "🙂"
    assert set(texts[:-1]) <= {"", " "}


def test_half_a_character_at_the_end_becomes_a_replacement_character(lossless: Tokenizer) -> None:
    ids = lossless.encode("the🙂")[:-1]
    *pushed, rest = _stream(lossless, ids)
    assert "".join(pushed) == "the"
    assert rest == "\ufffd"


def test_special_tokens_are_left_out_unless_asked_for(lossless: Tokenizer) -> None:
    ids = lossless.encode("<|im_start|>the<|im_end|>")
    assert lossless.decode(ids).strip() == "the"
    assert lossless.decode(ids, skip_special_tokens=False).startswith("<|im_start|>")
    assert lossless.decode(ids, skip_special_tokens=False).endswith("the<|im_end|>")


def test_a_text_that_continues_a_prompt_keeps_its_leading_space(lossless: Tokenizer) -> None:
    [the] = [
        token_id
        for token_id in range(lossless.vocab_size)
        if lossless.token_bytes(token_id) == b" the"
    ]
    detokenizer = Detokenizer(lossless, continues=True)
    assert detokenizer.push(the) + detokenizer.push(the) == " the the"


def test_an_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer) -> None:
    for wrong in (tokenizer.vocab_size, -1):
        with pytest.raises(RequestError, match=f"token id {wrong} is not in the vocabulary"):
            tokenizer.decode([0, wrong])
        with pytest.raises(RequestError, match=f"token id {wrong} is not in the vocabulary"):
            Detokenizer(tokenizer).push(wrong)


def test_token_bytes_are_exact_where_token_text_cannot_be(lossless: Tokenizer) -> None:
    ids = lossless.encode("🙂")
    assert b"".join(map(lossless.token_bytes, ids)).strip() == "🙂".encode()
    assert "\ufffd" in lossless.token_text(ids[-1])


def test_an_embedding_row_without_a_piece_means_no_text(tmp_path: Path) -> None:
    config = {"config.json": {"vocab_size": 1000}}
    folder = tiny_tokenizers.save_folder(tmp_path, _BACKENDS["byte-level"], config)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.decode([999]) == ""
