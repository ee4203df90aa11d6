"""Mistral: [TOOL_CALLS][{"name": …, "arguments": {…}}, …], newer ones [TOOL_CALLS]name[ARGS]{…}."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.tools.call import read_arguments, read_call
from router.tools.format import Frame, Function, Spell, literal, object_rules, separated
from router.tools.ids import short_id
from router.tools.source import (
    Arguments,
    CallStart,
    Prose,
    Reading,
    Source,
    Unreadable,
    peek,
    read_prose,
    read_until,
    skip,
    skip_blanks,
)


class Mistral:
    markers = ("[TOOL_CALLS]", "[ARGS]")
    marks = ("[TOOL_CALLS]",)
    opening = "[TOOL_CALLS]"
    frame: Frame | None = None
    prose = ""
    new_id = staticmethod(short_id)

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        while (yield from read_prose(source, self.markers[:1])):
            yield from skip_blanks(source)
            if (yield from skip(source, "[")):
                yield from self._read_list(source)
            elif (yield from peek(source, 1)) == "{":
                yield from read_call(source)
            else:
                yield from self._read_named(source)
            yield from skip_blanks(source)

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        calls = f"{literal('[')} {separated('call', ', ', most)} {literal(']')}"
        return f"calls: {begin} {calls}\n" + object_rules(functions, "arguments")

    def _read_list(self, source: Source) -> Reading[None]:
        while True:
            yield from skip_blanks(source)
            if (yield from skip(source, "]")) or source.ended and not source.text:
                return
            if (yield from skip(source, ",")):
                continue
            if not (yield from read_call(source)):
                return

    def _read_named(self, source: Source) -> Reading[None]:
        source.mark()
        try:
            name = (yield from read_until(source, "{")).removesuffix(self.markers[1]).strip()
        except Unreadable:
            yield Prose(source.take(len(source.text)))
            return
        yield CallStart(name)
        try:
            yield from read_arguments(source)
        except Unreadable:
            yield Arguments("")
