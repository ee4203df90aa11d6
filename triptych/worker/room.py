"""Blocks for a prompt whose KV comes from elsewhere."""

from __future__ import annotations

import asyncio
from functools import partial

from triptych.engine.sequence import Sequence
from triptych.engine.thread import Command, StepThread


async def wait_for_room(sequence: Sequence, thread: StepThread, submit: Command) -> None:
    """Until it has blocks for all its tokens, in the same queue as the prompts that are computed
    here. `submit`: puts it there, on the loop's thread.
    """
    event_loop, room = asyncio.get_running_loop(), asyncio.Event()
    sequence.on_room = partial(event_loop.call_soon_threadsafe, room.set)
    thread.post(submit)
    await room.wait()
