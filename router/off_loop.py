"""Heavy work beside the event loop, which serves everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_THREAD_SIZE = (
    16384  # characters or bytes: below, the work takes less than a thread's detour is worth
)


async def off_loop(work: Callable[[], _T], size: int) -> _T:
    """The result of `work`, done in a thread when `size` is large."""
    return work() if size < _THREAD_SIZE else await asyncio.to_thread(work)
