from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from triptych.launch.base import LaunchError, ProcessEvent, ProcessState
from triptych.launch.local import LocalLauncher
from triptych.launch.plan import ProcessSpec

Spec = Callable[..., ProcessSpec]
Launch = Callable[..., LocalLauncher]


async def seen(
    launcher: LocalLauncher, name: str, state: ProcessState, *, restarts: int = 0
) -> ProcessEvent:
    """The first event of process `name` in `state` after `restarts` restarts."""
    async with asyncio.timeout(30), contextlib.aclosing(launcher.watch()) as events:
        async for event in events:
            if (event.name, event.state) == (name, state) and event.restarts >= restarts:
                return event
    raise AssertionError(f"{name} was never {state}")


def pid_of(run_dir: Path, name: str) -> int:
    return int((run_dir / f"{name}.pid").read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_cluster_is_ready_when_its_router_listens_and_its_workers_are_attached(
    launcher: Launch, scripted: Spec
) -> None:
    async with launcher(scripted("router"), scripted("decode-0")) as cluster:
        assert await cluster.wait_ready(30) == "http://127.0.0.1:4711"
        ready = await seen(cluster, "router", ProcessState.READY)
        assert ready.detail == "http://127.0.0.1:4711"


async def test_a_loading_process_shows_its_last_log_line(launcher: Launch, scripted: Spec) -> None:
    source = "import signal; print('loading layer 7/30'); signal.pause()"
    async with launcher(scripted("router"), scripted("decode-0", source)) as cluster:
        event = await seen(cluster, "decode-0", ProcessState.LOADING)
        assert event.detail == "loading layer 7/30"


async def test_a_process_that_ends_while_starting_fails_the_start_with_its_log(
    launcher: Launch, scripted: Spec
) -> None:
    source = "import sys; print('reading weights'); sys.exit('no such file: model.gguf')"
    async with launcher(scripted("router"), scripted("decode-0", source)) as cluster:
        with pytest.raises(LaunchError) as caught:
            await cluster.wait_ready(30)
    assert "decode-0 exited with code 1 while the cluster was starting" in str(caught.value)
    assert "reading weights" in str(caught.value)
    assert "no such file: model.gguf" in str(caught.value)


async def test_an_earlier_runs_log_does_not_count(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    (run_dir / "logs").mkdir(parents=True)
    (run_dir / "logs" / "decode-0.log").write_text("an old disaster\n")
    async with launcher(scripted("router"), scripted("decode-0", "raise SystemExit(3)")) as cluster:
        with pytest.raises(LaunchError, match="exited with code 3 .* and logged nothing"):
            await cluster.wait_ready(30)


async def test_a_start_that_takes_too_long_says_who_is_late(
    launcher: Launch, scripted: Spec
) -> None:
    source = "import signal; print('loading layer 7/30'); signal.pause()"
    async with launcher(scripted("router"), scripted("decode-0", source)) as cluster:
        await seen(cluster, "router", ProcessState.READY)
        await seen(cluster, "decode-0", ProcessState.LOADING)
        with pytest.raises(LaunchError, match="decode-0 is loading: loading layer 7/30; logs: "):
            await cluster.wait_ready(0.01)


async def test_a_crashed_worker_is_started_again_and_counted(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    async with launcher(scripted("router"), scripted("decode-0")) as cluster:
        await cluster.wait_ready(30)
        first = pid_of(run_dir, "decode-0")
        assert cluster.pid("decode-0") == first
        (run_dir / "decode-0.pid").unlink()
        os.kill(first, signal.SIGKILL)
        exited = await seen(cluster, "decode-0", ProcessState.EXITED)
        assert exited.detail == "was killed by SIGKILL; starts again in 0.01 s"
        again = await seen(cluster, "decode-0", ProcessState.READY, restarts=1)
        assert again.restarts == 1
        assert cluster.pid("decode-0") == pid_of(run_dir, "decode-0") != first


async def test_a_worker_that_keeps_crashing_waits_longer_each_time(
    launcher: Launch, scripted: Spec, run_dir: Path, script: dict[str, str]
) -> None:
    source = (
        "import pathlib, sys\n"
        "mark = pathlib.Path(sys.argv[1]) / 'lived'\n"
        "if mark.exists(): sys.exit(9)\n"
        "mark.touch()\n" + script["obedient"]
    )
    async with launcher(scripted("router"), scripted("decode-0", source)) as cluster:
        await cluster.wait_ready(30)
        os.kill(pid_of(run_dir, "decode-0"), signal.SIGKILL)
        third = await seen(cluster, "decode-0", ProcessState.EXITED, restarts=2)
        assert third.detail == "exited with code 9; starts again in 0.04 s"


async def test_what_a_worker_started_does_not_outlive_it(
    launcher: Launch, scripted: Spec, run_dir: Path, script: dict[str, str]
) -> None:
    source = (
        "import pathlib, subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "(pathlib.Path(sys.argv[1]) / 'helper').write_text(str(helper.pid))\n" + script["obedient"]
    )
    async with launcher(scripted("router"), scripted("decode-0", source)) as cluster:
        await cluster.wait_ready(30)
        helper = os.pidfd_open(int((run_dir / "helper").read_text()))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(helper, ended.set)
    await asyncio.wait_for(ended.wait(), 30)
    asyncio.get_running_loop().remove_reader(helper)
    os.close(helper)


async def test_the_router_ends_before_the_workers_are_told(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    async with launcher(scripted("decode-0"), scripted("router"), scripted("decode-1")) as cluster:
        await cluster.wait_ready(30)
    journal = (run_dir / "journal").read_text().splitlines()
    assert journal[0] == "router told to end"
    assert sorted(journal[1:]) == ["decode-0 told to end", "decode-1 told to end"]


async def test_a_worker_that_does_not_drain_in_time_is_killed(
    launcher: Launch, scripted: Spec, run_dir: Path, script: dict[str, str]
) -> None:
    stubborn = scripted("decode-0", script["stubborn"])
    cluster = launcher(scripted("router"), stubborn, drain_s=0.0, margin_s=0.3)
    async with cluster:
        await cluster.wait_ready(30)
        pid = pid_of(run_dir, "decode-0")
    assert not alive(pid)
    assert "decode-0 told to end" in (run_dir / "journal").read_text()


async def test_a_second_interrupt_does_not_wait_for_the_drain(
    launcher: Launch, scripted: Spec, script: dict[str, str]
) -> None:
    stubborn = scripted("router", script["stubborn"])
    cluster = launcher(stubborn, scripted("decode-0"), drain_s=600.0)
    async with cluster:
        await cluster.wait_ready(30)
        began = time.monotonic()
        stopping = asyncio.create_task(cluster.stop())
        await asyncio.sleep(0)
        cluster.kill()
        await stopping
    assert time.monotonic() - began < 60


async def test_stopping_is_final(launcher: Launch, scripted: Spec, run_dir: Path) -> None:
    cluster = launcher(scripted("router"), scripted("decode-0"))
    async with cluster:
        await cluster.wait_ready(30)
        pids = [pid_of(run_dir, name) for name in ("router", "decode-0")]
    await cluster.stop()
    assert not any(alive(pid) for pid in pids)
    last = {event.name: event async for event in cluster.watch()}
    assert {event.state for event in last.values()} == {ProcessState.STOPPED}
    assert all(event.restarts == 0 for event in last.values())


async def test_stopping_while_starting_leaves_nothing(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    cluster = launcher(scripted("router"), scripted("decode-0", "import signal; signal.pause()"))
    await cluster.start()
    waiting = asyncio.create_task(cluster.wait_ready(30))
    await seen(cluster, "router", ProcessState.READY)
    await cluster.stop()
    with pytest.raises(LaunchError, match="stopped before it was ready"):
        await waiting
    assert not alive(pid_of(run_dir, "router"))


async def test_two_clusters_do_not_share_a_directory(
    launcher: Launch, scripted: Spec, run_dir: Path
) -> None:
    async with launcher(scripted("router")):
        second = launcher(scripted("router"))
        with pytest.raises(LaunchError, match="another cluster runs in this directory"):
            await second.start()
    async with launcher(scripted("router")) as third:
        await third.wait_ready(30)


async def test_a_restarted_router_keeps_the_port_that_was_chosen_for_it(
    launcher: Launch, scripted: Spec, run_dir: Path, script: dict[str, str]
) -> None:
    notes = "open(pathlib.Path(sys.argv[1]) / 'lives', 'a').write(' '.join(sys.argv[3:]) + '|')\n"
    source = f"import pathlib, sys\n{notes}" + script["obedient"]
    async with launcher(scripted("router", source), scripted("decode-0")) as cluster:
        await cluster.wait_ready(30)
        first = pid_of(run_dir, "router")
        (run_dir / "router.pid").unlink()
        os.kill(first, signal.SIGKILL)
        await seen(cluster, "router", ProcessState.READY, restarts=1)
        assert (run_dir / "lives").read_text() == "|--port 4711|"


async def test_a_command_that_does_not_exist_ends_the_start(
    launcher: Launch, scripted: Spec
) -> None:
    ghost = ProcessSpec("decode-0", "decode", ("/no/such/python",), {}, "attached")
    async with launcher(scripted("router"), ghost) as cluster:
        with pytest.raises(LaunchError, match="decode-0 exited with code 127"):
            await cluster.wait_ready(30)
