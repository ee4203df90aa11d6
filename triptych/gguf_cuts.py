"""How text is cut into words before byte pairs are merged, by a GGUF file's `tokenizer.ggml.pre`.

A GGUF file has the name only. The patterns are those of the models' own tokenizer.json; "default",
which no model was trained with, is llama.cpp's. Each cuts the pieces that the one before it left.
"""

from __future__ import annotations

from collections.abc import Mapping

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_SHORT}|{_WORD}|\p{{N}}|{_SIGNS}[\r\n]*|{_SPACE}"
_LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_SPACE}"
# Words that change from upper to lower case are cut there.
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = rf"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*|\p{{N}}|{_SIGNS}[\r\n/]*|{_SPACE}"
_GPT4O = (
    rf"{_UPPER}*{_LOWER}+{_SHORT}?|{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS}[\r\n/]*|{_SPACE}"
)
_LLAMACPP = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

CUTS: Mapping[str, tuple[str, ...]] = {
    "default": _LLAMACPP,
    **dict.fromkeys(("gpt-2", "mpt", "olmo"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
}

# A word of the vocabulary is not merged from bytes; BOS is added unless the file says otherwise.
LLAMA3_LIKE = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"})
