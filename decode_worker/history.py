"""What a home lends to the prefill worker that it asks: the prompt's first blocks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from transport.kv.digest import digests
from transport.protos import worker_pb2 as pb
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts
from triptych.worker.kv_holder import KvHolder


@dataclass(slots=True)
class Lender:
    """Tells where blocks of this pool can be read. The request that holds them keeps them there."""

    args: WorkerArgs
    parts: EngineParts
    holder: KvHolder
    address: str = ""  # of this worker's server; "": not serving yet

    def serving(self, address: str) -> None:
        self.address = address

    async def offer(self, blocks: list[int]) -> pb.KvHistory | None:
        """`blocks`: the prompt's first ones, full. None: there is nothing to lend."""
        if not blocks or not self.address or not self.holder.is_readable:
            return None
        parts = self.parts
        offset, length = parts.layout.layer_span(0, parts.layout.num_layers)
        sums = await asyncio.to_thread(
            digests, parts.region, blocks, offset, length, self.args.config.transport.digest
        )
        return pb.KvHistory(
            worker_id=self.args.worker_id,
            epoch=self.args.epoch,
            address=self.address,
            blocks=blocks,
            generations=[parts.pool.generation(block) for block in blocks],
            digests=sums,
        )
