"""`triptych chat`."""

from __future__ import annotations

from typing import Annotated

import typer

from triptych.launch.commands.options import ApiKey, Url


def chat(
    url: Url = "http://127.0.0.1:8000",
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the one that is served.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one answer.")] = None,
    timings: Annotated[bool, typer.Option(help="Show where the time of each answer went.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Talk to a running cluster. Reads one message from standard input when it is no terminal."""
    import asyncio
    import sys

    from triptych.launch.client import ChatClient
    from triptych.launch.console import open_console
    from triptych.launch.talk import Talk, converse

    client = ChatClient(url, api_key=api_key)
    settings = {
        "model": model or asyncio.run(client.model()),
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    talk = Talk(client, open_console(), system=system, timings=timings, settings=given)
    if sys.stdin.isatty():
        converse(talk)
    else:
        talk.say(sys.stdin.read())
