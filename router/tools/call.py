"""One call as most families write it: {"name": …, "arguments": {…}}."""

from __future__ import annotations

from collections.abc import Collection

from router.tools.source import (
    Arguments,
    CallStart,
    Prose,
    Reading,
    Source,
    Unreadable,
    expect,
    read_json,
    read_text,
    skip,
    skip_blanks,
)

_ARGUMENTS = ("arguments", "parameters")


def read_call(source: Source, names: Collection[str] | None = None) -> Reading[bool]:
    """An object with a name and arguments, in any order. False: there is none, and what was taken
    instead has been told as prose. `names`: others are no calls.

    A call that is cut off, or spoilt behind its name, stays what it was told to be.
    """
    source.mark()
    started = False
    try:
        for_sure = _read_members(source, names)
        for event in for_sure:
            started = started or isinstance(event, CallStart)
            yield event
    except Unreadable:
        if not started:
            yield Prose(source.since_mark)
            return False
    return True


def _read_members(source: Source, names: Collection[str] | None) -> Reading[None]:
    name = early = None
    told = False
    yield from expect(source, "{")
    while True:
        yield from skip_blanks(source)
        if (yield from skip(source, "}")):
            break
        if (yield from skip(source, ",")):
            continue
        key = yield from read_text(source)
        yield from skip_blanks(source)
        yield from expect(source, ":")
        yield from skip_blanks(source)
        if key == "name" and name is None:
            name = yield from read_text(source)
            if names is not None and name not in names:
                raise Unreadable(name)
            yield CallStart(name)
        elif key in _ARGUMENTS and name is not None and not told:
            yield from read_arguments(source)
            told = True
        elif key in _ARGUMENTS:
            early = yield from read_json(source)
        else:
            yield from read_json(source)
    if name is None:
        raise Unreadable("name")
    if not told:
        yield Arguments(early or "{}")


def read_arguments(source: Source) -> Reading[None]:
    """An object, or one inside a string, which some models write."""
    yield from skip_blanks(source)
    if source.text.startswith('"'):
        yield Arguments((yield from read_text(source)))
    else:
        yield from read_json(source, tell=True)
