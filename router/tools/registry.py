"""Which format a model's calls have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.tools.deepseek import DeepSeek
from router.tools.format import ToolFormat
from router.tools.harmony import Harmony
from router.tools.hermes import Hermes
from router.tools.llama import Llama
from router.tools.mistral import Mistral
from router.tools.pythonic import Pythonic

# Looked through in this order: a template may mention the marks of a later one.
FORMATS: Final[Mapping[str, ToolFormat]] = {
    "harmony": Harmony(),
    "mistral": Mistral(),
    "deepseek": DeepSeek(),
    "hermes": Hermes(),
    "pythonic": Pythonic(),
    "llama3_json": Llama(),
}


def tool_format(name: str, template: str) -> ToolFormat:
    """`name`: of `router.tool_parser`. With "auto" the chat template tells; one that tells nothing
    gets Hermes's, which is the most widespread.
    """
    if name != "auto":
        return FORMATS[name]
    for each in FORMATS.values():
        if any(mark in template for mark in each.marks):
            return each
    return FORMATS["hermes"]
