"""A model folder without weights: a byte-level tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path

from triptych.testing.tiny_tokenizers import byte_level, save_folder

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_chat(folder: Path) -> Path:
    """For `Tokenizer.load`; <|im_end|> ends a sequence."""
    settings = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    files = {"config.json": {"model_type": "llama"}, "tokenizer_config.json": settings}
    return save_folder(folder, byte_level(), files)
