"""Llama 3.1 and later: an answer that is {"name": …, "parameters": {…}}, or several with `;`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from router.tools.call import read_call
from router.tools.format import Frame, Function, Spell, object_rules, separated
from router.tools.ids import long_id
from router.tools.source import Reading, Source, peek, read_prose, skip, skip_blanks


class Llama:
    markers: tuple[str, ...] = ("<|python_tag|>",)
    marks: tuple[str, ...] = ("<|python_tag|>", "Environment: ipython")
    opening = ""
    frame: Frame | None = None
    prose = r"/\s*([^\s{\[](.|\n)*)?/"
    new_id = staticmethod(long_id)

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        """Without a tag only functions that there are make a call: an answer may be JSON, too."""
        yield from skip_blanks(source)
        tagged = yield from skip(source, self.markers[0])
        if tagged or (yield from peek(source, 1)) == "{":
            yield from self._read_calls(source, None if tagged else names)
        while (yield from read_prose(source, self.markers)):
            yield from self._read_calls(source, None)

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        return f"calls: {separated('call', '; ', most)}\n" + object_rules(functions, "parameters")

    def _read_calls(self, source: Source, names: Collection[str] | None) -> Reading[None]:
        yield from skip_blanks(source)
        while (yield from read_call(source, names)):
            yield from skip_blanks(source)
            if not (yield from skip(source, ";")):
                return
            yield from skip_blanks(source)
