"""What a model says to itself before it answers: <think>…</think> and the like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from router.tools.format import Spell, text_until
from router.tools.source import Reading, Source, Thought, read_prose, skip_blanks


@dataclass(frozen=True, slots=True)
class Thinking:
    """Marks around a thought, which may be the beginning of an answer."""

    begin: str
    end: str

    @property
    def markers(self) -> tuple[str, ...]:
        """Where one is a special token, its text must be seen."""
        return (self.begin, self.end)

    def is_opened_by(self, prompt: str) -> bool:
        """Whether the model goes on in a thought that the prompt's end has begun."""
        return prompt.rstrip().endswith(self.begin)

    def read(self, source: Source, opened: bool) -> Reading[None]:
        """The thought, if there is one, and the blanks around it. What follows is the answer."""
        if opened or (yield from self._begins(source)):
            yield from skip_blanks(source)
            if (yield from read_prose(source, [self.end], Thought)) is not None:
                yield from skip_blanks(source)

    def rules(self, opened: bool, spell: Spell) -> str:
        """Lark rule `lead`: what may stand before an answer that obeys a grammar."""
        thought = text_until("thought", self.end, spell(self.end))
        whole = "thought" if opened else f"({spell(self.begin)} thought)"
        return f"lead: {whole} /\\n{{0,2}}/{'' if opened else ' |'}\n{thought}"

    def _begins(self, source: Source) -> Reading[bool]:
        while True:
            said = source.text.lstrip()
            if said.startswith(self.begin):
                source.take(len(source.text) - len(said) + len(self.begin))
                return True
            if source.ended or not self.begin.startswith(said):
                return False
            yield None


# By `router.reasoning_parser`; "auto" takes the one whose end the chat template has.
THOUGHTS: Final[Mapping[str, Thinking]] = {
    "think": Thinking("<think>", "</think>"),  # Qwen 3, QwQ, DeepSeek R1 and V3.1, and many more
    "mistral": Thinking("[THINK]", "[/THINK]"),
}


def thinking_of(name: str, template: str) -> Thinking | None:
    """`name`: of `router.reasoning_parser`."""
    if name == "off":
        return None
    if name != "auto":
        return THOUGHTS[name]
    return next((each for each in THOUGHTS.values() if each.end in template), None)
