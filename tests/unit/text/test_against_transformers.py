"""The same answers as transformers: for the real SmolLM2, and for templates that models ship."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from triptych.chat import ChatTemplate
from triptych.hub import pull_model
from triptych.tokenizer import Detokenizer, Tokenizer

_TEXTS = [
    "",
    " ",
    "  leading and trailing  ",
    "a\n\n\nb\t\tc\r\n\r\n d",
    "In 2024, 12345.678 ²³ Ⅷ ٣٤  42abc42",
    "def f(x):\n    return x**2  # comment\n\n\n    y",
    "你好，世界！こんにちは 한국어 مرحبا हिन्दी ไทย",
    "🙂🙃👩‍👩‍👧‍👦 family 🇩🇪",
    "it's we'll I'M DON'T é e\u0301 \u200b\u00a0\u3000x",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>x",
    "\x00\x01\x7f" + "a" * 300 + " " * 70,
    "http://a.b/c?d=e&f=1%20[x]{y}",
]
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wie ist das Wetter in Köln & <Bonn>?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln", "n": 2}}}],
    },
    {"role": "tool", "content": '{"t": 7}'},
    {"role": "assistant", "content": "7 °C", "reasoning_content": "easy"},
    {"role": "user", "content": "Danke"},
]
_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
]
_TEMPLATES = {
    "chatml": """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}""",
    "tools and state": """\
{%- if strftime_now is defined %}{% set year = strftime_now("%Y") %}{% endif %}
{%- set ns = namespace(turn=0, last=none) -%}
{%- if tools is not none %}
{% for tool in tools %}
  {{ tool | tojson(indent=2) }}
{% endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message['role'] == 'tool' %}{% continue %}{% endif %}
  {%- set ns.turn = ns.turn + 1 %}
  {%- if message.tool_calls is defined and message.tool_calls %}
    {%- for call in message.tool_calls %}
{{ ns.turn }} {{ call.function.name }}({{ call.function.arguments | tojson }})
    {%- endfor %}
  {%- elif message.role == 'assistant' %}
    {%- generation %}{{ message.content | trim }} [{{ message.thinking }}]{%- endgeneration %}
  {%- else %}
    {{- message['content'].split('.')[-1] ~ bos_token ~ year | length }}
  {%- endif %}
{%- endfor %}""",
}


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return Tokenizer.load(pull_model("smollm2-135m"))


@pytest.fixture(scope="module")
def reference() -> Any:
    path = pull_model("smollm2-135m")
    loaded = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # What SmolLM2's own tokenizer.json has; transformers does not know the GGUF name for it.
    loaded.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return loaded


def test_smollm2_encodes_and_decodes_alike(smollm2: Tokenizer, reference: Any) -> None:
    pool = "".join(_TEXTS)
    chance = random.Random(1)
    texts = _TEXTS + ["".join(chance.choices(pool, k=40)) for _ in range(200)]
    for text in texts:
        ids = smollm2.encode(text)
        assert ids == reference(text)["input_ids"], text
        for skip in (True, False):
            expected = reference.decode(ids, skip_special_tokens=skip)
            assert smollm2.decode(ids, skip_special_tokens=skip) == expected


def test_smollm2_decodes_any_tokens_alike_at_once_and_streamed(
    smollm2: Tokenizer, reference: Any
) -> None:
    chance = random.Random(2)
    for _ in range(200):
        ids = [chance.randrange(smollm2.vocab_size) for _ in range(20)]
        expected = reference.decode(ids, skip_special_tokens=True)
        detokenizer = Detokenizer(smollm2)
        assert "".join([*map(detokenizer.push, ids), detokenizer.flush()]) == expected


def test_smollm2_renders_a_chat_alike(smollm2: Tokenizer, reference: Any) -> None:
    messages = [message for message in _MESSAGES if message["role"] in ("user", "assistant")]
    text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert smollm2.render_chat(messages) == text
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    ids = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert smollm2.encode_chat(messages) == ids


def test_smollm2_knows_its_special_tokens(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert smollm2.bos_token_id == 1
    assert smollm2.eos_token_ids == (2,)
    assert smollm2.token_text(2) == "<|im_end|>"


@pytest.mark.parametrize("name", _TEMPLATES)
@pytest.mark.parametrize("tools", [None, _TOOLS])
@pytest.mark.parametrize("more", [True, False])
def test_a_template_renders_alike(name: str, tools: Any, more: bool) -> None:
    source = _TEMPLATES[name]
    rendered: Any = render_jinja_template(
        [_MESSAGES], tools, chat_template=source, add_generation_prompt=more, bos_token="<s>"
    )
    found = ChatTemplate(source).render(
        _MESSAGES, tools=tools, add_generation_prompt=more, variables={"bos_token": "<s>"}
    )
    assert [found] == rendered[0]
