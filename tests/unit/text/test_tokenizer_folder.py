"""What is read from a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import decoders, processors

from triptych.errors import ModelError, RequestError
from triptych.testing.tiny_tokenizers import byte_level, save_folder
from triptych.tokenizer import Tokenizer

_MESSAGES = [{"role": "user", "content": "the"}]
_PLAIN = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def test_special_tokens_of_a_prompt_come_from_the_post_processor(tmp_path: Path) -> None:
    backend = byte_level()
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    settings = {"bos_token": {"content": "<s>", "lstrip": False}}
    tokenizer = Tokenizer.load(save_folder(tmp_path, backend, {"tokenizer_config.json": settings}))
    assert tokenizer.bos_token_id == bos
    assert tokenizer.encode("the") == [bos, *tokenizer.encode("the", add_special_tokens=False)]


def test_a_chat_prompt_gets_no_special_token_twice(tmp_path: Path) -> None:
    backend = byte_level()
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    settings = {"bos_token": "<s>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    tokenizer = Tokenizer.load(save_folder(tmp_path, backend, {"tokenizer_config.json": settings}))
    assert tokenizer.render_chat(_MESSAGES) == "<s>the"
    assert tokenizer.encode_chat(_MESSAGES) == tokenizer.encode("the")


def test_special_tokens_in_a_text_are_those_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save_folder(tmp_path, byte_level()))
    start = byte_level().token_to_id("<|im_start|>")
    assert tokenizer.encode("<|im_start|>")[0] == start
    assert len(tokenizer.encode("<|im_start|>")) == 1


def test_padding_and_truncation_left_over_from_training_are_ignored(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    tokenizer = Tokenizer.load(save_folder(tmp_path, backend))
    assert tokenizer.decode(tokenizer.encode("a long prompt")) == "a long prompt"
    assert len(tokenizer.encode("x")) == 1


def test_all_end_tokens_count_whatever_file_names_them(tmp_path: Path) -> None:
    backend = byte_level()
    files = {
        "generation_config.json": {"eos_token_id": [7, 8]},
        "config.json": {"eos_token_id": 8, "bos_token_id": 5},
        "tokenizer_config.json": {"eos_token": "<|im_end|>"},
    }
    tokenizer = Tokenizer.load(save_folder(tmp_path, backend, files))
    assert tokenizer.eos_token_ids == (7, 8, backend.token_to_id("<|im_end|>"))
    assert tokenizer.bos_token_id == 5


def test_a_model_without_chat_template_says_what_to_do(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save_folder(tmp_path, byte_level()))
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match=r"no chat template; use /v1/completions") as caught:
        tokenizer.encode_chat(_MESSAGES)
    assert caught.value.param == "messages"


def test_a_template_file_wins_over_the_tokenizer_config(tmp_path: Path) -> None:
    files = {"tokenizer_config.json": {"chat_template": "old"}, "chat_template.jinja": _PLAIN}
    tokenizer = Tokenizer.load(save_folder(tmp_path, byte_level(), files))
    assert tokenizer.render_chat(_MESSAGES) == "<|im_start|>the<|im_end|>"


def test_the_template_named_tool_use_is_for_requests_with_tools(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    files = {"tokenizer_config.json": {"chat_template": named}}
    tokenizer = Tokenizer.load(save_folder(tmp_path / "a", byte_level(), files))
    assert tokenizer.render_chat(_MESSAGES) == "plain"
    assert tokenizer.render_chat(_MESSAGES, tools=[{"type": "function"}]) == "tools"
    more = {"chat_template.jinja": "plain", "additional_chat_templates/tool_use.jinja": "tools"}
    tokenizer = Tokenizer.load(save_folder(tmp_path / "b", byte_level(), more))
    assert tokenizer.render_chat(_MESSAGES, tools=[{"type": "function"}]) == "tools"


def test_text_that_is_no_unicode_is_refused_by_field(tmp_path: Path) -> None:
    files = {"chat_template.jinja": _PLAIN}
    tokenizer = Tokenizer.load(save_folder(tmp_path, byte_level(), files))
    with pytest.raises(RequestError, match="lone surrogate at character 2") as caught:
        tokenizer.encode("ab\ud83d")
    assert caught.value.param == "prompt"
    with pytest.raises(RequestError, match="lone surrogate") as caught:
        tokenizer.encode_chat([{"role": "user", "content": "\udc00"}])
    assert caught.value.param == "messages"


def test_a_directory_without_tokenizer_json_tells_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    save_folder(tmp_path, byte_level())
    (tmp_path / name).write_text("{")
    with pytest.raises(ModelError, match=name):
        Tokenizer.load(tmp_path)


def test_a_broken_chat_template_is_found_at_start_up(tmp_path: Path) -> None:
    files = {"chat_template.jinja": "fine\n{% for %}"}
    with pytest.raises(ModelError, match="chat template, line 2"):
        Tokenizer.load(save_folder(tmp_path, byte_level(), files))


def test_a_decoder_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    backend = byte_level()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="decoder .*WordPiece.* is not supported"):
        Tokenizer.load(save_folder(tmp_path, backend))
