"""A conversation with a cluster, on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from triptych.errors import TriptychError
from triptych.launch.client import ChatClient
from triptych.launch.console import say, show_rows, write
from triptych.launch.timings import timing_rows

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


class Talk:
    """The messages so far, and the way to the next answer."""

    def __init__(
        self,
        client: ChatClient,
        console: Console,
        *,
        system: str | None,
        timings: bool,
        settings: Mapping[str, Any],
    ) -> None:
        self.console = console
        self._client = client
        self._start = [{"role": "system", "content": system}] if system else []
        self._timings = timings
        self._settings = settings
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = list(self._start)

    def say(self, text: str) -> None:
        """Streams the answer to `text` and remembers both.

        An answer that Ctrl-C stopped is remembered as far as it came. After an error `text` is
        forgotten, so that it can be said again.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            asyncio.run(self._stream(pieces))
        except TriptychError:
            self.messages.pop()
            raise
        except KeyboardInterrupt:
            write(self.console, " …\n")
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    async def _stream(self, pieces: list[str]) -> None:
        def take(text: str) -> None:
            pieces.append(text)
            write(self.console, text)

        answer = await self._client.ask(
            self.messages, take, timings=self._timings, **self._settings
        )
        write(self.console, "\n")
        if rows := timing_rows(answer):
            say(self.console)
            show_rows(self.console, rows)


def converse(talk: Talk) -> None:
    """Reads lines until the end of input. An error of one answer does not end the conversation."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for `input`)
    say(talk.console, _HELP)
    while (line := _read_line()) is not None:
        match line.strip():
            case "":
                pass
            case "/exit":
                return
            case "/reset":
                talk.reset()
            case "/help":
                say(talk.console, _HELP)
            case text:
                try:
                    talk.say(text)
                except TriptychError as error:
                    say(talk.console, f"error: {error}")


def _read_line() -> str | None:
    """None at the end of input; an interrupted line is an empty one."""
    try:
        return input("> ")
    except KeyboardInterrupt:
        print()
        return ""
    except EOFError:
        print()
        return None
