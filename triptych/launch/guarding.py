"""The launcher's side of `guard`: the pipe whose end of file ends the cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from triptych.launch import guard

_log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def guarded(mark: str, grace_s: float, log_file: Path) -> AsyncIterator[None]:
    """Inside, the death of this process ends all that carry `mark`; so does the block's end.

    The guard has a session of its own: no signal to our terminal or process group reaches it.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__, mark, str(grace_s)),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    watch = asyncio.create_task(_report_end(process), name="watch the guard")
    try:
        yield
    finally:
        watch.cancel()
        assert process.stdin is not None, "asked for a pipe"
        process.stdin.close()
        await process.wait()


async def _report_end(process: asyncio.subprocess.Process) -> None:
    code = await process.wait()
    _log.warning("the guard ended (%d): if the launcher is killed now, its workers stay", code)
