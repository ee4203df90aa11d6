"""What a home lends to the prefill worker that it asks: the prompt's first blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from transport.kv.digest import digests
from transport.protos import worker_pb2 as pb
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.kv_holder import KvHolder


@dataclass(slots=True)
class Lender:
    """Tells where blocks of this pool can be read. The request that holds them keeps them there.

    A conversation's blocks are lent at each of its turns: their digests are kept, since what a full
    block holds is final until it is handed out again, in another generation.
    """

    args: WorkerArgs
    parts: EngineParts
    holder: KvHolder
    address: str = ""  # of this worker's server; "": not serving yet
    _told: dict[int, tuple[int, int]] = field(default_factory=dict)  # by block: generation, digest

    def serving(self, address: str) -> None:
        self.address = address

    async def offer(self, blocks: list[int]) -> pb.KvHistory | None:
        """`blocks`: the prompt's first ones, full. None: there is nothing to lend."""
        if not blocks or not self.address or not self.holder.is_readable:
            return None
        generations = [self.parts.pool.generation(block) for block in blocks]
        return pb.KvHistory(
            worker_id=self.args.worker_id,
            epoch=self.args.epoch,
            address=self.address,
            blocks=blocks,
            generations=generations,
            digests=await self._digests(blocks, generations),
        )

    async def _digests(self, blocks: Sequence[int], generations: Sequence[int]) -> list[int]:
        now = dict(zip(blocks, generations, strict=True))
        new = [block for block, generation in now.items() if not self._knows(block, generation)]
        layout = self.parts.layout
        offset, length = layout.layer_span(0, layout.num_layers)
        mode = self.args.config.transport.digest
        sums = await asyncio.to_thread(digests, self.parts.region, new, offset, length, mode)
        self._told.update(
            (block, (now[block], digest)) for block, digest in zip(new, sums, strict=True)
        )
        return [self._told[block][1] for block in blocks]

    def _knows(self, block: int, generation: int) -> bool:
        return self._told.get(block, (None, 0))[0] == generation
