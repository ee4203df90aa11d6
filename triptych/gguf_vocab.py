"""What a GGUF file says about its tokens, rebuilt as the tokenizer that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.pre_tokenizers import PreTokenizer

from triptych.errors import ModelError
from triptych.gguf_cuts import CUTS, LLAMA3_LIKE
from triptych.gguf_metadata import read_metadata
from triptych.vocab import Vocab

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # tokenizer.ggml.token_type; 1 is normal
_SPACE = "▁"


def read_gguf(path: Path) -> Vocab:
    """Raises ModelError naming the file and the key."""
    data = read_metadata(path)
    try:
        return _build_vocab(data)
    except KeyError as error:
        raise ModelError(f"{path}: metadata {error} is missing") from error
    except IndexError as error:
        raise ModelError(f"{path}: a special token's id is not in tokenizer.ggml.tokens") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _build_vocab(data: Mapping[str, Any]) -> Vocab:
    tokens: list[str] = data["tokenizer.ggml.tokens"]
    kind = data["tokenizer.ggml.model"]
    if kind == "gpt2":
        backend = _byte_level(data, tokens)
    elif kind in ("llama", "gemma4"):
        gemma = data["general.architecture"].startswith("gemma")
        tokens = [_respell_spaces(token) for token in tokens] if gemma else tokens
        backend = _sentencepiece(data, tokens, gemma)
    else:
        raise ModelError(
            f"tokenizer.ggml.model {kind!r} is not supported; supported: gpt2, llama, gemma4"
        )
    _add_tokens(backend, tokens, data)
    return Vocab(
        backend=backend,
        size=len(tokens),
        special_tokens=_special_tokens(data, tokens),
        chat_templates=_chat_templates(data),
        bos_token_id=data.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=_eos_token_ids(data),
    )


def _byte_level(data: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    cut = data.get("tokenizer.ggml.pre", "default")
    if cut not in CUTS:
        raise ModelError(
            f"tokenizer.ggml.pre {cut!r} is not supported; supported: {', '.join(sorted(CUTS))}"
        )
    backend = Tokenizer(
        _merge_model(
            {token: index for index, token in enumerate(tokens)},
            _stored_merges(data),
            ignore_merges=cut in LLAMA3_LIKE,
        )
    )
    steps: list[PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in CUTS[cut]
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    _set_ends(backend, data, add_bos=cut in LLAMA3_LIKE)
    return backend


def _sentencepiece(data: Mapping[str, Any], tokens: Sequence[str], gemma: bool) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in data:
        merges = _stored_merges(data)
    else:
        # Gemma's scores do not follow the order of its merges, the order of its tokens does.
        ranks = [-index for index in range(len(tokens))] if gemma else data["tokenizer.ggml.scores"]
        merges = _implied_merges(vocab, ranks, data.get("tokenizer.ggml.token_type", ()))
    unknown = data.get("tokenizer.ggml.unknown_token_id")
    backend = Tokenizer(
        _merge_model(
            vocab,
            merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else tokens[unknown],
        )
    )
    prefix = data.get("tokenizer.ggml.add_space_prefix", not gemma)
    spaces = normalizers.Replace(" ", _SPACE)
    # Before every stretch of text between special tokens, as llama.cpp does.
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    _set_ends(backend, data, add_bos=True)
    return backend


def _merge_model(
    vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> models.BPE:
    try:
        return models.BPE(vocab, merges, **options)
    except Exception as error:  # the library raises nothing more precise
        raise ModelError(f"tokenizer.ggml.merges: {error}") from error


def _respell_spaces(token: str) -> str:
    return token.replace(" ", _SPACE) if not token.strip(" ") else token


def _stored_merges(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for line in data["tokenizer.ggml.merges"]:
        left, _, right = line.partition(" ")
        merges.append((left, right))
    return merges


def _implied_merges(
    vocab: Mapping[str, int], ranks: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """SentencePiece keeps no merges: any two pieces that make a piece may merge, best rank first.

    Among equals the longer left piece goes first, as in transformers' conversion.
    """
    special = (_UNKNOWN, _CONTROL, _BYTE)
    skipped = {index for index, kind in enumerate(kinds) if kind in special}
    found = []
    for token, index in vocab.items():
        if index in skipped:
            continue
        for cut in range(1, len(token)):
            left, right = vocab.get(token[:cut]), vocab.get(token[cut:])
            if left is not None and right is not None and not skipped & {left, right}:
                found.append((-ranks[index], -cut, cut - len(token), index, token))
    return [(token[:-minus_cut], token[-minus_cut:]) for _, minus_cut, _, _, token in sorted(found)]


def _add_tokens(backend: Tokenizer, tokens: Sequence[str], data: Mapping[str, Any]) -> None:
    """Tokens that are cut out of the text before anything else happens to it."""
    kinds = data.get("tokenizer.ggml.token_type", ())
    special, plain = [], []
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _UNKNOWN):
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == _USER_DEFINED and token.strip(_SPACE):
            plain.append(AddedToken(token, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)


def _set_ends(backend: Tokenizer, data: Mapping[str, Any], *, add_bos: bool) -> None:
    tokens = data["tokenizer.ggml.tokens"]
    used: list[dict[str, Any]] = []
    for name, wanted in (("bos", add_bos), ("eos", False)):
        token_id = data.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None and data.get(f"tokenizer.ggml.add_{name}_token", wanted):
            used.append({"id": name, "ids": [token_id], "tokens": [tokens[token_id]]})
    names = [item["id"] for item in used]
    parts = [*(["bos"] if "bos" in names else []), "$A", *(["eos"] if "eos" in names else [])]
    backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=used)


def _special_tokens(data: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    ids = {name: data.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    return {f"{name}_token": tokens[at] for name, at in ids.items() if at is not None}


def _eos_token_ids(data: Mapping[str, Any]) -> tuple[int, ...]:
    ids = (data.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def _chat_templates(data: Mapping[str, Any]) -> dict[str, str]:
    found = {
        name: data[f"tokenizer.chat_template.{name}"]
        for name in data.get("tokenizer.chat_templates", ())
        if f"tokenizer.chat_template.{name}" in data
    }
    if "tokenizer.chat_template" in data:
        found["default"] = data["tokenizer.chat_template"]
    return found
