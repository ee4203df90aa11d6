"""Llama 3.2 (small ones) and 4: an answer that is [name(argument="value", …), …]."""

from __future__ import annotations

import ast
import json
from collections.abc import Collection
from typing import Any

from router.tools.llama import Llama
from router.tools.source import (
    Arguments,
    CallStart,
    Prose,
    Reading,
    Source,
    peek,
    read_prose,
    skip,
    skip_blanks,
)

_CONSTANTS = {"true": True, "false": False, "null": None}


class Pythonic(Llama):
    """Llama's JSON is read too, and it is what grammars ask for: they know JSON schemas."""

    markers: tuple[str, ...] = ("<|python_start|>", "<|python_end|>", "<|python_tag|>")
    marks: tuple[str, ...] = ("<|python_start|>",)

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        """A call is told when its list is whole: before, nobody knows what its arguments mean."""
        yield from skip_blanks(source)
        yield from skip(source, self.markers[0])
        if (yield from peek(source, 1)) == "[":
            text = yield from _read_list(source)
            calls = parse_calls(text, names)
            if calls is None:
                yield Prose(text)
                yield from read_prose(source, ())
                return
            for name, arguments in calls:
                yield CallStart(name)
                yield Arguments(json.dumps(arguments, ensure_ascii=False))
            yield from skip(source, self.markers[1])
        yield from super().read(source, names)


def parse_calls(text: str, names: Collection[str]) -> list[tuple[str, dict[str, Any]]] | None:
    """Name and arguments of each; None unless it is a list of calls of known functions."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.List) and tree.elts:
            return [_parse_call(element, names) for element in tree.elts]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    return None


def _parse_call(tree: ast.expr, names: Collection[str]) -> tuple[str, dict[str, Any]]:
    if not isinstance(tree, ast.Call) or tree.args or ast.unparse(tree.func) not in names:
        raise ValueError("no call of a known function by named arguments")
    arguments = {
        each.arg: ast.literal_eval(_Constants().visit(each.value)) for each in tree.keywords
    }
    json.dumps(arguments)  # raises TypeError for sets and bytes
    return ast.unparse(tree.func), {str(name): value for name, value in arguments.items()}


class _Constants(ast.NodeTransformer):
    """JSON's words where Python's should be, as some models write."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def _read_list(source: Source) -> Reading[str]:
    """From `[` to the bracket that closes it, or to the end."""
    text, depth, quote, escaped = "", 0, "", False
    while True:
        for at, character in enumerate(source.text, start=1):
            if quote:
                if escaped or character == "\\":
                    escaped = not escaped
                elif character == quote:
                    quote = ""
            elif character in "\"'":
                quote = character
            else:
                depth += (character in "[({") - (character in "])}")
                if depth <= 0:
                    return text + source.take(at)
        text += source.take(len(source.text))
        if source.ended:
            return text
        yield None
