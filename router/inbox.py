"""What a home has told about one request and nobody has taken yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.progress import Progress
from transport.protos import worker_pb2 as pb
from triptych.request import TokenDelta

Told = TokenDelta | pb.RequestStats

_HOLD_TOKENS = 512  # so many untaken ones mean that the client does not read


class Inbox:
    """Filled by the home's messages, emptied by one reader, both on one event loop.

    It never refuses anything: `hold(True)` asks the home to keep what comes, as soon as
    `_HOLD_TOKENS` tokens lie here, and `hold(False)` to go on, when they were taken.
    """

    def __init__(
        self, request_id: str, hold: Callable[[bool], None], progress: Progress | None = None
    ) -> None:
        self.request_id = request_id
        self.progress = progress or Progress()  # what was put here, taken or not, counts as got
        self.ended = False  # the home has said its last word
        # A quicker way for bare tokens, tried while the reader waits: it spares a task's turn for
        # each token. False: not this one.
        self.shortcut: Callable[[int], bool] | None = None
        self._hold = hold
        self._held = False
        self._num_tokens = 0
        self._told: list[Told] = []
        self._token_ids: list[int] = []  # bare tokens of choice 0, later than what was told
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None

    def put_token(self, token_id: int) -> None:
        self.progress.add_token(token_id)
        if self.shortcut is not None and self._reader_waits():
            try:
                if self.shortcut(token_id):
                    return
            except Exception as error:
                self.give_up(error)
                return
        self._token_ids.append(token_id)
        self._count(1)

    def put(self, told: Told) -> None:
        self._flush_tokens()
        self._told.append(told)
        if isinstance(told, TokenDelta):
            self.progress.add(told)
            self._count(len(told.token_ids))
        else:
            self.ended = True
            self._wake_reader()

    def fail(self, error: Exception) -> None:
        """`take` raises it, after all that came before. The first word of an end is the last."""
        if not self.ended:
            self.ended, self._error = True, error
            self._wake_reader()

    def give_up(self, error: Exception) -> None:
        """Ends the waiting with this error, without a word from the home."""
        if not self.ended and self._error is None:
            self._error = error
            self._wake_reader()

    async def wait(self) -> None:
        """Until there is something to take. Raises what the request failed with."""
        while not self._token_ids and not self._told:
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader

    async def take(self) -> list[Told]:
        """All that is here; waits for something. Bare tokens come as one delta."""
        await self.wait()
        self._flush_tokens()
        told, self._told = self._told, []
        self._num_tokens = 0
        if self._held:
            self._held = False
            self._hold(False)
        return told

    def _flush_tokens(self) -> None:
        if self._token_ids:
            self._told.append(TokenDelta(self.request_id, 0, tuple(self._token_ids)))
            self._token_ids = []

    def _count(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        if self._num_tokens >= _HOLD_TOKENS and not self._held and not self.ended:
            self._held = True
            self._hold(True)
        self._wake_reader()

    def _reader_waits(self) -> bool:
        return self._reader is not None and not self._reader.done()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
