"""Open channels to workers, and what this router has under way on each. Lives on one event loop.

A channel belongs to one (worker id, epoch): a restarted worker gets a new one, without the old
one's back-off.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import grpc

from router.place import Placement
from transport.channel import connect
from transport.protos import worker_pb2 as pb
from transport.protos import worker_pb2_grpc
from transport.registry import WorkerView

Generate = grpc.aio.UnaryStreamMultiCallable[pb.GenerateRequest, pb.GenerateReply]
_Key = tuple[str, int]
_K = TypeVar("_K", bound=Hashable)


class Homes:
    def __init__(self) -> None:
        self._channels: dict[_Key, grpc.aio.Channel] = {}
        self._open: Counter[_Key] = Counter()  # calls
        self._choices: Counter[str] = Counter()  # by home's worker id
        self._prefilling: Counter[str] = Counter()  # prompt tokens by prefill worker's id

    @property
    def choices(self) -> Mapping[str, int]:
        return self._choices

    @property
    def prefilling(self) -> Mapping[str, int]:
        return self._prefilling

    @contextlib.contextmanager
    def visit(self, placement: Placement, choices: int) -> Iterator[Generate]:
        """The Generate call of the placement's home; counts as open until the block ends."""
        view = placement.decode
        key = (view.worker_id, view.epoch)
        if key not in self._channels:
            self._channels[key] = connect(view.address)
        with _counted(self._open, key, 1), _counted(self._choices, view.worker_id, choices):
            yield _generate(self._channels[key])

    @contextlib.contextmanager
    def prefill(self, placement: Placement, prompt_tokens: int) -> Iterator[None]:
        """Counts the prompt as queued on the placement's prefill worker until the block ends."""
        if placement.prefill is None:
            yield
            return
        with _counted(self._prefilling, placement.prefill.worker_id, prompt_tokens):
            yield

    async def forget_all_but(self, attached: Iterable[WorkerView]) -> None:
        """Closes the channels of workers that left, unless a call is still open on them."""
        known = {(view.worker_id, view.epoch) for view in attached}
        for key in [k for k in self._channels if k not in known and not self._open[k]]:
            await self._channels.pop(key).close(None)

    async def close(self) -> None:
        """Cancels every open call."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close(None)


def _generate(channel: grpc.aio.Channel) -> Generate:
    stub: Any = worker_pb2_grpc.DecodeWorkerStub(channel)
    call: Generate = stub.Generate
    return call


@contextlib.contextmanager
def _counted(counter: Counter[_K], key: _K, amount: int) -> Iterator[None]:
    counter[key] += amount
    try:
        yield
    finally:
        counter[key] -= amount
        if not counter[key]:
            del counter[key]
