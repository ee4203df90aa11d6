"""Several streams as one, without running ahead of the consumer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

_T = TypeVar("_T")


async def merged(
    streams: Sequence[AsyncGenerator[_T, None]],
) -> AsyncGenerator[tuple[int, _T], None]:
    """(index of the stream, item) as items come; at most one item of each stream waits here.

    The first error of any stream ends all. Closes every stream, however it ends.
    """
    if len(streams) == 1:  # spares the usual request a task per item
        async with contextlib.aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    turns: dict[asyncio.Task[_T | None], int] = {}

    def ask(index: int) -> None:
        turns[asyncio.create_task(_next(streams[index]))] = index

    try:
        for index in range(len(streams)):
            ask(index)
        while turns:
            done, _ = await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = turns.pop(task)
                found = task.result()
                if found is not None:
                    yield index, found
                    ask(index)
    finally:
        for task in turns:
            task.cancel()
        await asyncio.gather(*turns, return_exceptions=True)
        for stream in streams:
            await stream.aclose()


async def _next(stream: AsyncGenerator[_T, None]) -> _T | None:
    return await anext(stream, None)
