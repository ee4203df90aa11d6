"""gpt-oss: an answer is messages on channels, each with a head that says whom it is for.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary
    to=functions.get_weather <|constrain|>json<|message|>{…}<|call|>

`analysis` is thought, `final` and `commentary` without a recipient are said to the user.
https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from router.tools.call import read_arguments
from router.tools.format import Frame, Function, Spell, literal, schema_term, text_until
from router.tools.ids import long_id
from router.tools.source import (
    Arguments,
    CallStart,
    Prose,
    Reading,
    Source,
    Thought,
    Unreadable,
    peek,
    read_prose,
    read_until,
    skip,
)

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_END, _CALL, _RETURN, _CONSTRAIN = "<|end|>", "<|call|>", "<|return|>", "<|constrain|>"
_HEAD = (_START, _CHANNEL, _MESSAGE)  # where a message's head begins
_TAIL = (_END, _CALL, _RETURN)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")


class Harmony:
    """Read whether there are tools or not: plain answers have a head, too."""

    markers = (_START, _CHANNEL, _MESSAGE, _END, _CALL, _RETURN, _CONSTRAIN)
    marks: tuple[str, ...] = (_CHANNEL,)
    opening = ""
    prose = ""
    new_id = staticmethod(long_id)

    @property
    def frame(self) -> Frame:
        return self

    def read(self, source: Source, names: Collection[str]) -> Reading[None]:
        """The first head may lack its beginning, which the prompt wrote: ` to=functions.now`."""
        if (yield from peek(source, 4)) == " to=":
            yield from self._read_message(source, names)
        while (mark := (yield from read_prose(source, _HEAD))) is not None:
            yield from self._read_message(source, names, mark)

    def rules(self, functions: Sequence[Function], most: int, spell: Spell, begin: str) -> str:
        """One call, whatever `most` is: the model ends its turn to hear the result."""
        rules = [f"calls: {' | '.join(f'call_{index}' for index in range(len(functions)))}"]
        for index, function in enumerate(functions):
            head = f"{spell(_CHANNEL)} {literal(f'commentary to=functions.{function.name} ')}"
            body = f'{spell(_CONSTRAIN)} "json" {spell(_MESSAGE)} {schema_term(function)}'
            rules.append(f"call_{index}: {head} {body}")
        return "\n".join(rules) + "\n"

    def said(self, answer: str, spell: Spell) -> str:
        """An answer that is no call, as a term."""
        return f'{spell(_CHANNEL)} "final" {spell(_MESSAGE)} {answer}'

    def lead(self, spell: Spell) -> str:
        """Lark rule `lead`: what the model thinks before."""
        head = f'{spell(_CHANNEL)} "analysis" {spell(_MESSAGE)}'
        lead = f'lead: ({head} thought {spell(_START)} "assistant")?\n'
        return lead + text_until("thought", _END, spell(_END))

    def _read_message(
        self, source: Source, names: Collection[str], begun: str = ""
    ) -> Reading[None]:
        head = begun
        if begun != _MESSAGE:
            try:
                head += yield from read_until(source, _MESSAGE)
            except Unreadable:  # cut off before it said anything
                source.take(len(source.text))
                return
            yield from skip(source, _MESSAGE)
        found = _RECIPIENT.search(head)
        recipient = found[1] if found else ""
        if recipient.startswith("functions.") and names:
            yield CallStart(recipient.removeprefix("functions."))
            yield from _read_arguments(source)
        else:
            thought = recipient or "analysis" in head
            yield from read_prose(source, _TAIL, Thought if thought else Prose)


def _read_arguments(source: Source) -> Reading[None]:
    try:
        yield from read_arguments(source)
    except Unreadable:
        if source.text:  # there are none, or something else; "": cut off
            yield Arguments("{}")
    for event in read_prose(source, _TAIL):
        if event is None:
            yield None
