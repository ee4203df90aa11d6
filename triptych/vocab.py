"""What a Hugging Face directory says about its tokens: vocabulary, special ones, chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from triptych.errors import ModelError


@dataclass(frozen=True, slots=True)
class Vocab:
    """Everything a `Tokenizer` is made of, whatever file it came from."""

    backend: tokenizers.Tokenizer
    size: int  # token ids are 0 … size - 1
    special_tokens: Mapping[str, str]  # "bos_token": "<s>", … as chat templates name them
    chat_templates: Mapping[str, str]  # by name; "default" and perhaps "tool_use", …
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]


def read_folder(folder: Path) -> Vocab:
    """Raises ModelError naming the file."""
    backend = _read_backend(folder / "tokenizer.json")
    config = _read_json(folder / "config.json")
    settings = _read_json(folder / "tokenizer_config.json")
    special = _special_tokens(settings)
    return Vocab(
        backend=backend,
        size=_vocab_size(backend, config),
        special_tokens=special,
        chat_templates=_chat_templates(folder, settings),
        bos_token_id=_bos_token_id(backend, special, config),
        eos_token_ids=_eos_token_ids(backend, special, config, folder),
    )


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelError(
            f"{path.parent}: no tokenizer.json; transformers writes one: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"{path}: {error}") from error
    # Left over from training; a prompt is neither cut nor filled up in silence.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(path: Path) -> dict[str, Any]:
    """{} when there is no such file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(_read_text(path))
    except ValueError as error:
        raise ModelError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            found[key] = text
    return found


def _vocab_size(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> int:
    # The embedding may have more rows than there are pieces; those ids are valid and mean no text.
    nested = config.get("text_config")  # of a multimodal model
    rows = config.get("vocab_size") or (nested or {}).get("vocab_size")
    known = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return max(known, rows) if isinstance(rows, int) else known


def _bos_token_id(
    backend: tokenizers.Tokenizer, special: Mapping[str, str], config: Mapping[str, Any]
) -> int | None:
    if "bos_token" in special:
        return backend.token_to_id(special["bos_token"])
    found = config.get("bos_token_id")
    return found if isinstance(found, int) else None


def _eos_token_ids(
    backend: tokenizers.Tokenizer,
    special: Mapping[str, str],
    config: Mapping[str, Any],
    folder: Path,
) -> tuple[int, ...]:
    generation = _read_json(folder / "generation_config.json")
    found: list[int] = []
    for value in (generation.get("eos_token_id"), config.get("eos_token_id")):
        values = value if isinstance(value, list) else [value]
        found += [item for item in values if isinstance(item, int)]
    if "eos_token" in special:
        token_id = backend.token_to_id(special["eos_token"])
        found += [] if token_id is None else [token_id]
    return tuple(dict.fromkeys(found))


def _chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own win over tokenizer_config.json, as in transformers."""
    found: dict[str, str] = {}
    for stored in (
        settings.get("chat_template"),
        _read_json(folder / "chat_template.json").get("chat_template"),
    ):
        if isinstance(stored, str):
            found["default"] = stored
        elif isinstance(stored, list):
            found.update(_named_templates(stored, folder))
    extra = folder / "additional_chat_templates"
    for path in [*sorted(extra.glob("*.jinja")), folder / "chat_template.jinja"]:
        if path.is_file():
            name = "default" if path.parent == folder else path.stem
            found[name] = _read_text(path)
    return found


def _named_templates(stored: list[Any], folder: Path) -> dict[str, str]:
    try:
        return {item["name"]: item["template"] for item in stored}
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"{folder / 'tokenizer_config.json'}: chat_template: expected text, "
            "or a list of objects with name and template"
        ) from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: {error}") from error
