"""Remote drafters of one decode worker, and the connections that end with it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import partial

from decode_worker.speculate.draft_link import DraftLink
from decode_worker.speculate.patience import Patience
from decode_worker.speculate.remote_drafter import RemoteDrafter
from decode_worker.speculate.troubled_link import TroubledLink
from transport.protos import worker_pb2 as pb
from triptych.drafters.drafter import Drafter
from triptych.drafters.make import target_identity
from triptych.obs.speculation import SpeculationMetrics
from triptych.speculation_config import RemoteConfig
from triptych.worker.args import WorkerArgs
from triptych.worker.boot import EngineParts


@dataclass(frozen=True, slots=True)
class RemoteLinks:
    """Made and closed on the event loop."""

    args: WorkerArgs
    parts: EngineParts
    metrics: SpeculationMetrics
    _links: list[DraftLink | TroubledLink] = field(default_factory=list)

    def drafter(self, config: RemoteConfig) -> Drafter:
        vocab_size = self.parts.model.config.vocab_size
        hello = pb.DraftHello(
            worker_id=self.args.worker_id,
            epoch=self.args.epoch,
            target=target_identity(self.args.config.served_name, self.parts.model_path),
            vocab_size=vocab_size,
            drafter=config.drafter,
        )
        link: DraftLink | TroubledLink = DraftLink(
            self._addresses(config), hello, config.kind, self.metrics
        )
        if config.trouble:
            assert isinstance(link, DraftLink)
            link = TroubledLink(link, config.trouble)
        drafter = RemoteDrafter(
            link,
            partial(_count, self.metrics, config.kind),
            patience=Patience(config.deadline_ms / 1e3),
            vocab_size=vocab_size,
        )
        link.start(drafter)
        self._links.append(link)
        return drafter

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    def _addresses(self, config: RemoteConfig) -> Seq[str]:
        if config.pool is None:
            assert config.url is not None, "the configuration names one or the other"
            return [config.url]
        if targets := self.args.peers.get(config.pool):
            return spread(targets, self.args.worker_id)
        replicas = self.args.config.pool(config.pool).replicas
        sockets = [f"unix:{self.args.run_dir}/{config.pool}-{i}.sock" for i in range(replicas)]
        return spread(sockets, self.args.worker_id)


def spread(addresses: Seq[str], worker_id: str) -> list[str]:
    """The same addresses, begun elsewhere by each worker. Pure."""
    first = zlib.crc32(worker_id.encode()) % len(addresses)
    return [*addresses[first:], *addresses[:first]]


def _count(metrics: SpeculationMetrics, drafter: str, outcome: str) -> None:
    metrics.remote.labels(drafter, outcome).inc()
