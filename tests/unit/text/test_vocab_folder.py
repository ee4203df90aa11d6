"""A GGUF file's vocabulary, written as a Hugging Face directory, gives the same ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.gguf_vocab import read_gguf
from triptych.testing.tiny_tokenizers import save_gguf
from triptych.token_pieces import byte_alphabet
from triptych.tokenizer import Tokenizer
from triptych.vocab_folder import save_vocab

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_TEXTS = [
    "",
    " ",
    "the the  the\n\n\tthe",
    "It's 1234 o'clock,  naïve 漢字🙂\r\n\n\tif (x) { y(); }  <tool>\u00a0 ٣٤",
    "<bos>the<eos> <eos>the",
    "a\u0301 \u200d👩\u200d👩\u200d👧 \x00\x07 \ufeff▁▁x ĠĠ",
    "</s><s>[INST] the [/INST]",
]
_TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}{{ eos_token }}{% endfor %}"


def save_bpe(folder: Path, pre: str, **values: Any) -> Path:
    tokens = ["<bos>", "<eos>", "<tool>", *byte_alphabet(), "12", "123", "th", "the", "Ġthe", "ĠĠ"]
    return save_gguf(
        folder / f"{pre}.gguf",
        tokens=tokens,
        kinds=[_CONTROL, _CONTROL, _USER_DEFINED, *[_NORMAL] * (len(tokens) - 3)],
        values={
            "ggml.pre": pre,
            "ggml.merges": ["1 2", "12 3", "t h", "th e", "Ġ the", "Ġ Ġ"],
            "ggml.bos_token_id": 0,
            "ggml.eos_token_id": 1,
            "chat_template": _TEMPLATE,
            **values,
        },
    )


def save_spm(folder: Path, **values: Any) -> Path:
    words = ["▁", "t", "h", "e", "▁t", "th", "▁th", "▁the", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return save_gguf(
        folder / "spm.gguf",
        tokens=tokens,
        kinds=[_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * len(words)],
        model="llama",
        values={
            "ggml.scores": [0.0] * 259 + [-float(at) for at in range(len(words))],
            "ggml.bos_token_id": 1,
            "ggml.eos_token_id": 2,
            "ggml.unknown_token_id": 0,
            "chat_template": _TEMPLATE,
            **values,
        },
    )


def written(path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    save_vocab(read_gguf(path), folder, max_model_len=4096)
    return folder


def theirs(folder: Path) -> Any:
    import transformers

    auto: Any = transformers.AutoTokenizer  # untyped
    return auto.from_pretrained(folder)


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2", "tekken", "default"])
def test_byte_level_ids_are_the_same_everywhere(pre: str, tmp_path: Path) -> None:
    check_ids(save_bpe(tmp_path, pre))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_ids_are_the_same_everywhere(prefix: bool, tmp_path: Path) -> None:
    check_ids(save_spm(tmp_path, **{"ggml.add_space_prefix": prefix}))


def check_ids(path: Path) -> None:
    wanted, folder = Tokenizer.load(path), written(path)
    ours, fast = Tokenizer.load(folder), theirs(folder)
    assert (ours.bos_token_id, ours.eos_token_ids) == (wanted.bos_token_id, wanted.eos_token_ids)
    assert (fast.bos_token_id, fast.eos_token_id) == (wanted.bos_token_id, wanted.eos_token_ids[0])
    for text in _TEXTS:
        ids = wanted.encode(text)
        assert ours.encode(text) == ids
        assert fast.encode(text) == ids
        assert ours.decode(ids) == wanted.decode(ids)


def test_any_text_has_the_same_ids(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = save_bpe(tmp_path_factory.mktemp("vocab"), "smollm")
    wanted, folder = Tokenizer.load(path), written(path)
    ours, fast = Tokenizer.load(folder), theirs(folder)

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def check(text: str) -> None:
        assert ours.encode(text) == fast.encode(text) == wanted.encode(text)

    check()


def test_chats_are_rendered_the_same(tmp_path: Path) -> None:
    path = save_bpe(tmp_path, "llama-bpe")
    wanted, folder = Tokenizer.load(path), written(path)
    messages = [{"role": "user", "content": "the 123"}, {"role": "assistant", "content": "🙂"}]
    ids = wanted.encode_chat(messages)
    assert len(ids) > 4 and ids[0] == 0
    assert Tokenizer.load(folder).encode_chat(messages) == ids
    assert theirs(folder).apply_chat_template(messages)["input_ids"] == ids


def test_named_chat_templates_stay_apart(tmp_path: Path) -> None:
    values = {"chat_templates": ["tool_use"], "chat_template.tool_use": "tools: {{ tools }}"}
    folder = written(save_bpe(tmp_path, "smollm", **values))
    loaded = Tokenizer.load(folder)
    assert loaded.render_chat([], tools=[{"name": "clock"}]).startswith("tools: ")
    assert loaded.render_chat([{"role": "user", "content": "x"}]) == "<bos>x<eos>"
    assert set(theirs(folder).chat_template) == {"default", "tool_use"}
