"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from router.merge import merged


class Source:
    """Counts what it gave and notes its end."""

    def __init__(self, *items: int | BaseException | asyncio.Event) -> None:
        self.items = items
        self.given = 0
        self.closed = asyncio.Event()

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            for item in self.items:
                match item:
                    case asyncio.Event():
                        await item.wait()
                    case BaseException():
                        raise item
                    case int():
                        self.given += 1
                        yield item
        finally:
            self.closed.set()


@pytest.mark.parametrize("count", [1, 3])
async def test_everything_arrives_in_the_order_of_its_stream(count: int) -> None:
    sources = [Source(1, 2, 3) for _ in range(count)]
    found: dict[int, list[int]] = {index: [] for index in range(count)}
    async for index, item in merged([source.stream() for source in sources]):
        found[index].append(item)
    assert found == {index: [1, 2, 3] for index in range(count)}
    assert all(source.closed.is_set() for source in sources)


async def test_a_waiting_stream_does_not_hold_up_the_others() -> None:
    blocked = asyncio.Event()
    sources = [Source(blocked, 1), Source(2, 3)]
    async with aclosing(merged([source.stream() for source in sources])) as items:
        assert [await anext(items), await anext(items)] == [(1, 2), (1, 3)]
        blocked.set()
        assert await anext(items) == (0, 1)


async def test_no_stream_runs_ahead_of_the_consumer() -> None:
    sources = [Source(*range(100)) for _ in range(3)]
    async with aclosing(merged([source.stream() for source in sources])) as items:
        for _ in range(5):
            await anext(items)
        assert sum(source.given for source in sources) <= 5 + len(sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_an_error_ends_all(count: int) -> None:
    never = asyncio.Event()
    sources = [Source(ValueError("broken")), *(Source(never) for _ in range(count - 1))]
    with pytest.raises(ValueError, match="broken"):
        async for _ in merged([source.stream() for source in sources]):
            pass
    assert all(source.closed.is_set() for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_the_consumer_closes_every_stream(count: int) -> None:
    never = asyncio.Event()
    begun = asyncio.Event()
    sources = [Source(0, never) for _ in range(count)]

    async def consume() -> None:
        seen = 0
        async for _ in merged([source.stream() for source in sources]):
            seen += 1
            if seen == count:
                begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert all(source.closed.is_set() for source in sources)
