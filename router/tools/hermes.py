"""Hermes 2 and 3, Qwen 2.5 and 3: <tool_call>{"name": …, "arguments": {…}}</tool_call>."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.tools.call import read_call
from router.tools.format import Frame, Function, Spell, literal, object_rules, repeated
from router.tools.ids import long_id
from router.tools.source import Reading, Source, read_prose, skip, skip_blanks


class Hermes:
    markers = ("<tool_call>", "</tool_call>")
    marks = ("<tool_call>",)
    opening = "<tool_call>"
    frame: Frame | None = None
    prose = ""
    new_id = staticmethod(long_id)

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        begin, end = self.markers
        while (yield from read_prose(source, [begin])):
            yield from skip_blanks(source)
            if (yield from read_call(source)):
                yield from skip_blanks(source)
                yield from skip(source, end)
                yield from skip_blanks(source)

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        line, (again, end) = literal("\n"), map(spell, self.markers)
        rest = f"{line} call {line} {end}"
        more = repeated("more", most - 1)
        return f"calls: {begin} {rest}{more}\nmore: {line} {again} {rest}\n" + object_rules(
            functions, "arguments"
        )
