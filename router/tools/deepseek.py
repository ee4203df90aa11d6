"""DeepSeek V3, R1 and V3.1: calls between markers of their own, the arguments as JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.tools.call import read_arguments
from router.tools.format import Frame, Function, Spell, literal, repeated, schema_term
from router.tools.ids import long_id
from router.tools.source import (
    CallStart,
    Reading,
    Source,
    Unreadable,
    read_prose,
    read_until,
    skip,
    skip_blanks,
)

_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"


class DeepSeek:
    """V3 and R1: `function SEPARATOR name`, the JSON fenced; V3.1: `name SEPARATOR`, bare JSON."""

    markers = (_CALLS, _CALLS_END, _CALL, _CALL_END, _SEPARATOR)
    marks = (_CALLS,)
    opening = _CALLS
    frame: Frame | None = None
    prose = ""
    new_id = staticmethod(long_id)

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        outer = (_CALLS, _CALLS_END, _CALL, _CALL_END)
        while (marker := (yield from read_prose(source, outer))) is not None:
            yield from skip_blanks(source)
            if marker == _CALL:
                try:
                    yield from self._read_call(source)
                except Unreadable:  # cut off: what was told stands
                    continue

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        """As V3.1 writes them; `read` knows both."""
        rules = [f"calls: {begin} call{repeated('call', most - 1)} {spell(_CALLS_END)}"]
        rules.append(f"call: {' | '.join(f'call_{index}' for index in range(len(functions)))}")
        for index, function in enumerate(functions):
            head = f"{spell(_CALL)} {literal(function.name)} {spell(_SEPARATOR)}"
            rules.append(f"call_{index}: {head} {schema_term(function)} {spell(_CALL_END)}")
        return "\n".join(rules) + "\n"

    def _read_call(self, source: Source) -> Reading[None]:
        name = (yield from read_until(source, _SEPARATOR)).strip()
        yield from skip(source, _SEPARATOR)
        if name == "function":
            name = (yield from read_until(source, "\n")).strip()
            yield CallStart(name)
            yield from skip_blanks(source)
            yield from skip(source, "```json")
            yield from read_arguments(source)
            yield from skip_blanks(source)
            yield from skip(source, "```")
        else:
            yield CallStart(name)
            yield from read_arguments(source)
        yield from skip_blanks(source)
