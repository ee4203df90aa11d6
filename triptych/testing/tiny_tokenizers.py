"""Tokenizers small enough to read, one of each kind, and folders and GGUF files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from triptych.token_pieces import byte_alphabet

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def byte_level() -> Tokenizer:
    """Every byte and a few English merges, in GPT-2's manner."""
    pieces = [*byte_alphabet(), "th", "the", "Ġth", "Ġthe", "Ġt", "ðŁ"]
    merges = [("t", "h"), ("Ġ", "th"), ("th", "e"), ("Ġth", "e"), ("Ġ", "t"), ("ð", "Ł")]
    backend = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    _add_special(backend)
    backend.add_tokens([AddedToken("<tool>", special=False), AddedToken("日 本", special=False)])
    return backend


def sentencepiece() -> Tokenizer:
    """Pieces with spaces written as ▁, every byte as a way out, in Llama 2's manner."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "t", "h", "e", "▁t", "▁th", "▁the", "é"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "▁")]
    backend = Tokenizer(
        models.BPE(
            {piece: at for at, piece in enumerate(pieces)},
            merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    restore_spaces = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence(
        [restore_spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_special(backend)
    return backend


def metaspace() -> Tokenizer:
    pieces = ["▁", "a", "b", "c", "▁a", "▁ab"]
    merges = [("▁", "a"), ("▁a", "b")]
    backend = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def words() -> Tokenizer:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def save_folder(folder: Path, backend: Tokenizer, files: Mapping[str, Any] | None = None) -> Path:
    """A model directory without weights; `files` by name, anything but text is written as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in (files or {}).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def save_gguf(
    path: Path,
    *,
    tokens: Sequence[str],
    kinds: Sequence[int],
    model: str = "gpt2",
    architecture: str = "llama",
    values: Mapping[str, Any] | None = None,
) -> Path:
    """A GGUF file without tensors; `values` are further `tokenizer.*` keys."""
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(kinds))
    for key, value in (values or {}).items():
        key = f"tokenizer.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _add_special(backend: Tokenizer) -> None:
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
