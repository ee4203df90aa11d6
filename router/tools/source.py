"""Text that is read while it comes.

A parser is a generator that reads from a `Source` in straight lines. It yields what it found, and
None where it needs to see more; so it does not matter at all how a text was cut into tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Prose:
    """Text beside the calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text that is not for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the last call's arguments, which are JSON when they are whole."""

    text: str


Found = Prose | Thought | CallStart | Arguments
Reading = Generator[Found | None, None, _T]


class Unreadable(Exception):
    """Not what the format says, or cut off."""


class Source:
    """What came and was not taken yet."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._taken = ""  # since the mark

    def take(self, count: int) -> str:
        taken, self.text = self.text[:count], self.text[count:]
        self._taken += taken
        return taken

    def mark(self) -> None:
        self._taken = ""

    @property
    def since_mark(self) -> str:
        return self._taken


class ToolParser:
    """Of one choice."""

    def __init__(self, read: Callable[[Source], Reading[None]]) -> None:
        self._source = Source()
        self._reading = read(self._source)

    def push(self, text: str) -> list[Found]:
        self._source.text += text
        return self._find()

    def finish(self) -> list[Found]:
        self._source.ended = True
        return self._find()

    def _find(self) -> list[Found]:
        found: list[Found] = []
        for event in self._reading:
            if event is None:
                break
            found.append(event)
        return found


def read_prose(
    source: Source, markers: Sequence[str], tell: Callable[[str], Found] = Prose
) -> Reading[str | None]:
    """Up to the first of `markers`, which is returned and taken; None: there is none any more.

    Blanks before a marker are dropped.
    """
    while True:
        starts = {source.text.find(marker): marker for marker in markers}
        starts.pop(-1, None)
        if starts:
            at = min(starts)
            said = source.take(at).rstrip()
            if said:
                yield tell(said)
            source.take(len(starts[at]))
            return starts[at]
        if source.ended:
            if source.text:
                yield tell(source.take(len(source.text)))
            return None
        safe = _certain_length(source.text, markers)
        if safe:
            yield tell(source.take(safe))
        yield None


def _certain_length(text: str, markers: Sequence[str]) -> int:
    """Of the part of a text that holds no beginning of a marker, nor blanks before one."""
    held = 0
    for marker in markers:
        longest = min(len(marker) - 1, len(text))
        held = max(held, next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0))
    return len(text[: len(text) - held].rstrip())


def peek(source: Source, count: int) -> Reading[str]:
    """The next characters; fewer at the end only."""
    while len(source.text) < count and not source.ended:
        yield None
    return source.text[:count]


def skip_blanks(source: Source) -> Reading[None]:
    while True:
        source.take(len(source.text) - len(source.text.lstrip()))
        if source.text or source.ended:
            return
        yield None


def skip(source: Source, text: str) -> Reading[bool]:
    """Takes `text` if it comes next."""
    length = 0
    while length < len(text):
        length += 1
        if (yield from peek(source, length)) != text[:length]:
            return False
    source.take(len(text))
    return True


def expect(source: Source, text: str) -> Reading[None]:
    """Raises Unreadable."""
    if not (yield from skip(source, text)):
        raise Unreadable(text)


def read_until(source: Source, stop: str) -> Reading[str]:
    """Characters before `stop`, which stays. Raises Unreadable when it does not come."""
    while (at := source.text.find(stop)) < 0:
        if source.ended:
            raise Unreadable(stop)
        yield None
    return source.take(at)


def read_json(source: Source, *, tell: bool = False) -> Reading[str]:
    """The text of one JSON value, whose own grammar is not looked at; `tell`: as Arguments too.

    Raises Unreadable when it is cut off, after it told what there is.
    """
    whole, scan = "", _Scan()
    while True:
        if not source.text:
            if source.ended:
                raise Unreadable("JSON")
            yield None
            continue
        count = scan.push(source.text)
        if count:
            piece = source.take(count)
            whole += piece
            if tell:
                yield Arguments(piece)
        if scan.done:
            return whole
        if source.ended:
            if whole and scan.is_scalar:
                return whole
            raise Unreadable("JSON")


class _Scan:
    """Finds where a JSON value ends."""

    def __init__(self) -> None:
        self.done = False
        self.is_scalar = False  # a number, true, false or null: only what follows ends it
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def push(self, text: str) -> int:
        """How many characters belong to the value. Raises Unreadable for what begins none."""
        for at, character in enumerate(text):
            if self.is_scalar:
                if character in ",}] \n\t\r;":
                    self.done = True
                    return at
            elif self._in_string:
                self._go_on(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]" and self._depth:
                self._depth -= 1
            elif not self._depth:
                if not (character.isalnum() or character == "-"):
                    raise Unreadable(character)
                self.is_scalar = True
            if not (self.is_scalar or self._in_string or self._depth):
                self.done = True
                return at + 1
        return len(text)

    def _go_on(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False


def read_text(source: Source) -> Reading[str]:
    """A JSON string's value. Raises Unreadable."""
    raw = yield from read_json(source)
    try:
        value: Any = json.loads(raw)
    except ValueError:
        raise Unreadable(raw) from None
    if not isinstance(value, str):
        raise Unreadable(raw)
    return value
