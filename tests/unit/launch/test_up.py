from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from triptych.config import ClusterConfig
from triptych.launch.base import LaunchError
from triptych.launch.local import LocalLauncher
from triptych.launch.plan import ProcessSpec
from triptych.launch.up import examples, run_up

Spec = Callable[..., ProcessSpec]
Launch = Callable[..., LocalLauncher]


class Screen(io.StringIO):
    """What was printed, and the moment when it says something."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = asyncio.Event()

    def write(self, text: str) -> int:
        self._printed.set()
        return super().write(text)

    async def shows(self, text: str) -> None:
        async with asyncio.timeout(30):
            while text not in self.getvalue():
                self._printed.clear()
                await self._printed.wait()


def run(launcher: LocalLauncher, screen: Screen) -> asyncio.Task[None]:
    console = Console(file=screen, width=200)
    work = run_up(ClusterConfig(), launcher, console, None, leave=False)
    return asyncio.create_task(work)


async def test_up_shows_how_to_use_the_cluster_until_it_is_interrupted(
    launcher: Launch, scripted: Spec
) -> None:
    screen = Screen()
    running = run(launcher(scripted("router"), scripted("decode-0")), screen)
    await screen.shows("curl http://127.0.0.1:4711/v1/chat/completions")
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 30)
    assert "ready in " in screen.getvalue()
    assert "draining" in screen.getvalue()


async def test_a_second_interrupt_kills_what_does_not_drain(
    launcher: Launch, scripted: Spec, script: dict[str, str]
) -> None:
    screen = Screen()
    stubborn = scripted("router", script["stubborn"])
    running = run(launcher(stubborn, scripted("decode-0"), drain_s=600.0), screen)
    await screen.shows("triptych chat")
    os.kill(os.getpid(), signal.SIGINT)
    await screen.shows("draining")
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 60)


async def test_up_tells_of_a_worker_that_crashed_and_came_back(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    screen = Screen()
    running = run(launcher(scripted("router"), scripted("decode-0")), screen)
    await screen.shows("triptych chat")
    pid_file = run_dir / "decode-0.pid"
    pid = int(pid_file.read_text())
    pid_file.unlink()
    os.kill(pid, signal.SIGKILL)
    await screen.shows("decode-0 was killed by SIGKILL; starts again in 0.01 s")
    await screen.shows("decode-0 is ready again (restart 1)")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 30)


async def test_a_start_that_fails_leaves_nothing_behind(launcher: Launch, scripted: Spec) -> None:
    screen = Screen()
    cluster = launcher(scripted("router"), scripted("decode-0", "raise SystemExit('no weights')"))
    with pytest.raises(LaunchError, match="no weights"):
        await run(cluster, screen)
    assert "draining" not in screen.getvalue()
    states = {event.name: event.state async for event in cluster.watch()}
    assert states == {"router": "stopped", "decode-0": "exited"}


def test_the_examples_name_the_key_but_do_not_show_it() -> None:
    text = examples("http://127.0.0.1:8000", "m", with_key=True)
    assert "Authorization: Bearer $KEY" in text
    assert "Authorization" not in examples("http://127.0.0.1:8000", "m", with_key=False)
