"""A thread for the compiler, which calls itself for every rule that a rule needs.

On an ordinary stack a chain of some hundred rules, which a caller may send, would end the process.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")

# Address space, not memory. The deepest grammar that `source.check_size` lets pass needs a tenth.
_STACK_BYTES = 256 << 20
_MOST_THREADS = 2  # compilers at once, whoever asks


async def on_deep_stack(work: Callable[[], _T]) -> _T:
    """The result of `work`, done in such a thread."""
    before = threading.stack_size(_STACK_BYTES)  # of threads that start from now on
    try:
        result = asyncio.get_running_loop().run_in_executor(_threads(), work)
    finally:
        threading.stack_size(before)
    return await result


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, "grammar")
