"""What is asked: short and long prompts, whole and streamed answers. The same of everybody."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.routers.http_workers import MODEL
from bench.routers.pace import ANSWER


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    what: str
    num_tokens: int  # of each answer
    stream: bool
    conversation: bool  # prompts are turns of conversations, some 4,000 tokens each
    per_s: float  # requests a second, in the steady run
    flooding: int  # requests of the flood

    def bodies(self, seed: int) -> Iterator[bytes]:
        """Without end."""
        draw = random.Random(f"{self.name} {seed}")
        for messages in _conversations(draw) if self.conversation else _questions(draw):
            body = {"model": MODEL, "messages": messages, "max_completion_tokens": self.num_tokens}
            yield json.dumps({**body, "temperature": 0, "stream": self.stream}).encode()

    def times(self, seed: int, seconds: float) -> list[float]:
        """Arrivals of a Poisson process."""
        draw = random.Random(f"times {self.name} {seed}")
        gaps = itertools.accumulate(iter(lambda: draw.expovariate(self.per_s), None))
        return list(itertools.takewhile(lambda at: at < seconds, gaps))


CASES = (
    Case("whole", "20 words, 16 tokens back, not streamed", 16, False, False, 50, 600),
    Case("stream-32", "20 words, 32 tokens streamed", 32, True, False, 40, 400),
    Case("stream-128", "20 words, 128 tokens streamed", 128, True, False, 15, 200),
    Case("chat-4k", "turns of chats, 4,000 tokens; 32 streamed", 32, True, True, 15, 200),
)

_TURNS = 8
_WORDS = sorted({word.strip(".,;").lower() for word in ANSWER.split()})


def _questions(draw: random.Random) -> Iterator[list[dict[str, Any]]]:
    while True:
        yield [{"role": "user", "content": _text(draw, 20)}]


def _conversations(draw: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Turn by turn, several in turns: all begin with the same instructions."""
    system = {"role": "system", "content": _text(random.Random(0), 800)}
    while True:
        chats = [[system, _turn(draw, "user", 1600)] for _ in range(8)]
        for _ in range(_TURNS):
            for chat in chats:
                yield list(chat)
                chat += [_turn(draw, "assistant", 200), _turn(draw, "user", 100)]


def _turn(draw: random.Random, role: str, num_words: int) -> dict[str, Any]:
    return {"role": role, "content": _text(draw, num_words)}


def _text(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choices(_WORDS, k=num_words))
