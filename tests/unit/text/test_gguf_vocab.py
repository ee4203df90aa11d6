"""What is read from a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.errors import ModelError
from triptych.testing.tiny_tokenizers import save_gguf
from triptych.token_pieces import byte_alphabet
from triptych.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_SUPPORTED = (
    *("command-r", "deepseek-r1-qwen", "default", "falcon3", "gpt-2", "gpt-4o", "llama-bpe"),
    *("llama-v3", "llama3", "llama4", "mpt", "olmo", "qwen2", "refact", "smaug-bpe", "smollm"),
    *("stablelm2", "starcoder", "tekken"),
)
_BPE = ["<bos>", "<eos>", "<tool>", *byte_alphabet(), "12", "123", "1234", "'s", "'S", "Ġ1", "ĠĠ"]
_BPE_KINDS = [_CONTROL, _CONTROL, _USER_DEFINED, *[_NORMAL] * (len(_BPE) - 3)]
_BPE_VALUES: dict[str, Any] = {
    "ggml.merges": ["1 2", "12 3", "123 4", "' s", "' S", "Ġ 1", "Ġ Ġ"],
    "ggml.bos_token_id": 0,
    "ggml.eos_token_id": 1,
}
_SPM = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
_SPM_KINDS = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
_WORDS = ["▁", "t", "h", "e", "▁t", "th", "he", "▁th", "▁the"]


def _load_bpe(folder: Path, **values: Any) -> Tokenizer:
    merged = {**_BPE_VALUES, **{key.replace("__", "."): value for key, value in values.items()}}
    path = save_gguf(folder / "bpe.gguf", tokens=_BPE, kinds=_BPE_KINDS, values=merged)
    return Tokenizer.load(path)


def _load_spm(folder: Path, words: list[str], scores: list[float], **values: Any) -> Tokenizer:
    path = save_gguf(
        folder / "spm.gguf",
        tokens=[*_SPM, *words],
        kinds=[*_SPM_KINDS, *[_NORMAL] * len(words)],
        model="llama",
        architecture=values.pop("architecture", "llama"),
        values={
            "ggml.scores": [*[0.0] * len(_SPM), *scores],
            "ggml.bos_token_id": 1,
            "ggml.eos_token_id": 2,
            "ggml.unknown_token_id": 0,
            **{key.replace("__", "."): value for key, value in values.items()},
        },
    )
    return Tokenizer.load(path)


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token_id) for token_id in tokenizer.encode(text)]


@pytest.mark.parametrize("pre", _SUPPORTED)
def test_every_supported_way_of_cutting_text_loses_none_of_it(tmp_path: Path, pre: str) -> None:
    tokenizer = _load_bpe(tmp_path, ggml__pre=pre)
    text = "It's 1234 o'clock,  naïve 漢字🙂\r\n\n\tif (x) { y(); }  <tool>\u00a0 ٣٤"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("smollm", ["1", "2", "3", "4"]),
        ("qwen2", ["1", "2", "3", "4"]),
        ("llama-bpe", ["123", "4"]),
        ("gpt-2", ["1234"]),
    ],
)
def test_digits_are_grouped_as_the_model_learned_them(
    tmp_path: Path, pre: str, digits: list[str]
) -> None:
    tokenizer = _load_bpe(tmp_path, ggml__pre=pre, ggml__add_bos_token=False)
    assert _pieces(tokenizer, "1234") == digits


def test_a_space_belongs_to_a_number_only_where_the_model_learned_it(tmp_path: Path) -> None:
    assert _pieces(_load_bpe(tmp_path, ggml__pre="smollm"), " 1") == [" ", "1"]
    assert _pieces(_load_bpe(tmp_path, ggml__pre="gpt-2"), " 1") == [" 1"]


def test_an_unknown_way_of_cutting_text_is_named_with_those_supported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre 'martian' .*: command-r.*smollm"):
        _load_bpe(tmp_path, ggml__pre="martian")


def test_control_tokens_are_special_and_user_defined_ones_are_text(tmp_path: Path) -> None:
    tokenizer = _load_bpe(tmp_path)
    assert tokenizer.encode("a<tool><eos>")[1:] == [2, 1]
    assert tokenizer.decode(tokenizer.encode("a<tool><eos>")) == "a<tool>"


def test_prompts_begin_and_end_as_the_file_says(tmp_path: Path) -> None:
    plain = _load_bpe(tmp_path, ggml__pre="gpt-2")
    both = _load_bpe(tmp_path, ggml__add_bos_token=True, ggml__add_eos_token=True)
    assert both.encode("a") == [0, *plain.encode("a"), 1]
    assert both.encode("a", add_special_tokens=False) == plain.encode("a")
    assert plain.bos_token_id == 0
    # Without a word about it: as llama.cpp does for these.
    assert _load_bpe(tmp_path, ggml__pre="llama-bpe").encode("a") == [0, *plain.encode("a")]


def test_all_end_tokens_of_the_file_count(tmp_path: Path) -> None:
    tokenizer = _load_bpe(tmp_path, ggml__eot_token_id=2, ggml__eom_token_id=1)
    assert tokenizer.eos_token_ids == (1, 2)


def test_chat_templates_of_the_file_see_its_special_tokens(tmp_path: Path) -> None:
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    tokenizer = _load_bpe(tmp_path, chat_template=template)
    assert tokenizer.has_chat_template
    assert tokenizer.render_chat([{"content": "hi"}]) == "<bos>hi<eos>"
    named = _load_bpe(
        tmp_path,
        chat_template="plain",
        chat_templates=["tool_use"],
        chat_template__tool_use="tools",
    )
    assert named.render_chat([], tools=[{}]) == "tools"


@pytest.mark.parametrize(
    ("best", "pieces"), [("he", ["<s>", " t", "he"]), ("▁th", ["<s>", " th", "e"])]
)
def test_sentencepiece_merges_the_piece_of_the_best_score_first(
    tmp_path: Path, best: str, pieces: list[str]
) -> None:
    words = ["▁", "t", "h", "e", "▁t", "he", "▁th"]
    scores = {"▁t": -1.0, best: -2.0}
    tokenizer = _load_spm(tmp_path, words, [scores.get(word, -9.0) for word in words])
    assert _pieces(tokenizer, "the") == pieces


def test_sentencepiece_spells_unknown_characters_in_bytes(tmp_path: Path) -> None:
    tokenizer = _load_spm(tmp_path, _WORDS, [-1.0] * len(_WORDS))
    assert tokenizer.decode(tokenizer.encode("the 漢 é  ")) == "the 漢 é  "
    assert tokenizer.token_bytes(3 + 0xE6) == b"\xe6"


def test_a_model_without_space_prefix_gets_none(tmp_path: Path) -> None:
    tokenizer = _load_spm(tmp_path, _WORDS, [-1.0] * len(_WORDS), ggml__add_space_prefix=False)
    assert "".join(_pieces(tokenizer, "the")) == "<s>the"
    assert tokenizer.decode(tokenizer.encode(" the")) == " the"


def test_gemma_spells_runs_of_spaces_as_its_merges_do(tmp_path: Path) -> None:
    words = ["▁", "a", "  ", "   ", "▁a"]
    tokenizer = _load_spm(tmp_path, words, [0.0] * 5, architecture="gemma3")
    assert _pieces(tokenizer, "a   a") == ["<s>", "a", "   ", "a"]
    assert tokenizer.decode(tokenizer.encode("a   a")) == "a   a"


def test_another_kind_of_vocabulary_is_refused_by_name(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "t5.gguf", tokens=["a"], kinds=[1], model="t5")
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.model 't5' is not supported"):
        Tokenizer.load(path)


def test_missing_and_impossible_metadata_is_named(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "a.gguf", tokens=["a"], kinds=[1])
    with pytest.raises(ModelError, match=r"a\.gguf: metadata 'tokenizer\.ggml\.merges' is missing"):
        Tokenizer.load(path)
    values = {"ggml.merges": ["x y"]}
    path = save_gguf(tmp_path / "b.gguf", tokens=["a"], kinds=[1], values=values)
    with pytest.raises(ModelError, match=r"b\.gguf: .*vocabulary"):
        Tokenizer.load(path)
    with pytest.raises(ModelError, match="special token's id"):
        _load_bpe(tmp_path, ggml__eos_token_id=9999)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_off_anywhere_is_refused(tmp_path_factory: Any, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    whole = save_gguf(folder / "whole.gguf", tokens=_BPE, kinds=_BPE_KINDS, values=_BPE_VALUES)
    data = whole.read_bytes().rstrip(b"\0")
    cut = folder / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"cut\.gguf: not a (readable )?GGUF file"):
        Tokenizer.load(cut)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        Tokenizer.load(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="No such file"):
        Tokenizer.load(tmp_path / "y.gguf")
