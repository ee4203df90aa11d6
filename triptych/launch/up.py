"""`triptych up`: a cluster on this machine, from the first process to the last."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rich.console import Console

from triptych.config import ClusterConfig
from triptych.launch.base import ProcessEvent, ProcessState
from triptych.launch.board import Board
from triptych.launch.client import ChatClient
from triptych.launch.console import say, show_rows, write
from triptych.launch.local import LocalLauncher
from triptych.launch.timings import timing_rows


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask once the cluster is up."""

    prompt: str
    max_tokens: int


async def run_up(
    config: ClusterConfig,
    launcher: LocalLauncher,
    console: Console,
    question: Question | None,
    *,
    leave: bool,
) -> None:
    """Returns when told to stop (SIGINT, SIGTERM, SIGHUP), or after the answer with `leave`.

    The first signal drains, the second kills. Raises LaunchError, and the client's errors for the
    question; whatever happens, nothing is left running.
    """
    work = asyncio.create_task(_serve(config, launcher, console, question, leave=leave))
    with _interrupts(first=work.cancel, later=launcher.kill) as interrupted:
        try:
            await work
        except asyncio.CancelledError:
            if not interrupted():
                raise
            say(console, _farewell(config))
        finally:
            work.cancel()
            await launcher.stop()


def examples(url: str, model: str, *, with_key: bool) -> str:
    """The lines that a user copies to try the cluster."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    body = json.dumps({"model": model, "messages": messages})
    header = ' -H "Authorization: Bearer $KEY"' if with_key else ""
    client = f"OpenAI(base_url='{url}/v1', api_key='{'<key>' if with_key else 'none'}')"
    call = f"{client}.chat.completions.create(model='{model}', messages={messages})"
    return (
        f"  curl {url}/v1/chat/completions{header} -H 'Content-Type: application/json' "
        f"-d '{body}'\n\n"
        '  python -c "from openai import OpenAI; '
        f'print({call}.choices[0].message.content)"\n\n'
        f"  triptych chat --url {url}{' --api-key …' if with_key else ''}\n"
    )


async def _serve(
    config: ClusterConfig,
    launcher: LocalLauncher,
    console: Console,
    question: Question | None,
    *,
    leave: bool,
) -> None:
    began = time.monotonic()
    await launcher.start()
    with Board(console, [spec.name for spec in launcher.specs]) as board:
        url = await _shown_while_starting(launcher, board)
    key = config.router.any_key
    say(console, f"\nready in {time.monotonic() - began:.1f} s: {config.served_name} at {url}")
    say(console, f"logs: {launcher.run_dir.path / 'logs'}\n")
    say(console, examples(url, config.served_name, with_key=key is not None))
    if question is not None:
        await _answer(ChatClient(url, api_key=key), console, question)
    if not leave:
        async for event in launcher.watch():
            if line := _news(event):
                say(console, line)


async def _shown_while_starting(launcher: LocalLauncher, board: Board) -> str:
    async def show() -> None:
        async for event in launcher.watch():
            board.show(event)

    showing = asyncio.create_task(show())
    try:
        return await launcher.wait_ready()
    finally:
        showing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await showing


async def _answer(client: ChatClient, console: Console, question: Question) -> None:
    say(console, f"> {question.prompt}")
    answer = await client.ask(
        [{"role": "user", "content": question.prompt}],
        lambda text: write(console, text),
        timings=True,
        max_tokens=question.max_tokens,
        temperature=0,  # the same words every time, on every split
    )
    write(console, "\n\n")
    show_rows(console, timing_rows(answer))


def _news(event: ProcessEvent) -> str | None:
    """A line for what happens to a running cluster; the router's first readiness is none."""
    if event.state is ProcessState.EXITED:
        return f"{event.name} {event.detail}"
    if event.state is ProcessState.READY and event.restarts:
        return f"{event.name} is ready again (restart {event.restarts})"
    return None


def _farewell(config: ClusterConfig) -> str:
    return (
        f"\ndraining: open requests may take {config.drain_s:g} s to finish; Ctrl-C again ends now"
    )


@contextlib.contextmanager
def _interrupts(
    *, first: Callable[[], object], later: Callable[[], object]
) -> Iterator[Callable[[], bool]]:
    """Inside, the first signal calls `first`, each further one `later`; yields whether one came."""
    loop = asyncio.get_running_loop()
    came = False

    def interrupt() -> None:
        nonlocal came
        (later if came else first)()
        came = True

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, interrupt)
    try:
        yield lambda: came
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
