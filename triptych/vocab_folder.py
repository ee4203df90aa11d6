"""A vocabulary written as the files of a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.vocab import Vocab


def save_vocab(vocab: Vocab, folder: Path, *, max_model_len: int) -> None:
    """tokenizer.json and tokenizer_config.json with special tokens and chat templates.

    `read_folder` and transformers' AutoTokenizer read them to the same ids. Raises OSError.
    """
    vocab.backend.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        # Takes tokenizer.json as it is, whatever the model.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_model_len,
        "clean_up_tokenization_spaces": False,
        **vocab.special_tokens,
    }
    templates = dict(vocab.chat_templates)
    if set(templates) == {"default"}:
        settings["chat_template"] = templates["default"]
    elif templates:
        settings["chat_template"] = [
            {"name": name, "template": template} for name, template in templates.items()
        ]
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
