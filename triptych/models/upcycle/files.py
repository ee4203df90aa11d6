"""All files of the mixture but its weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triptych.errors import ModelError
from triptych.gguf_vocab import read_gguf
from triptych.models.upcycle.recipe import Recipe
from triptych.vocab_folder import save_vocab

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a Hugging Face directory may say about text; it stays true.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
    "generation_config.json",
)


def write_files(source: Path, folder: Path, config: dict[str, Any], recipe: Recipe) -> None:
    """config.json from `config` and the dense model's token ids, generation_config.json, and the
    tokenizer with its chat template. Raises ModelError and OSError.
    """
    if source.is_dir():
        ids = _directory_ids(source)
        _copy_files(source, folder)
    else:
        vocab = read_gguf(source)
        save_vocab(vocab, folder, max_model_len=config["max_position_embeddings"])
        pad = vocab.special_tokens.get("pad_token")
        ids = {
            "bos_token_id": vocab.bos_token_id,
            "eos_token_id": _one_or_list(vocab.eos_token_ids),
            "pad_token_id": None if pad is None else vocab.backend.token_to_id(pad),
        }
    origin = {"upcycled": {"source": source.name, **asdict(recipe)}}
    _write_json(folder / "config.json", config | ids | origin)
    if not (folder / "generation_config.json").exists():
        known = {name: value for name, value in ids.items() if value is not None}
        _write_json(folder / "generation_config.json", known)


def _copy_files(source: Path, folder: Path) -> None:
    for name in _COPIED:
        path = source / name
        if path.is_dir():
            shutil.copytree(path, folder / name)
        elif path.is_file():
            shutil.copyfile(path, folder / name)


def _directory_ids(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{source / 'config.json'}: {error}") from error
    return {name: config.get(name) for name in _TOKEN_IDS}


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    return ids[0] if len(ids) == 1 else list(ids) or None


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
