"""What the relay does with the index: asks before a prompt is placed, notes where it went,
compares.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from router.index.audit import Audit
from router.index.hit import PrefixHit
from router.index.keys import keys_of
from router.index.kv_index import BlockIndex, Lookup
from router.index.metrics import IndexMetrics
from router.index.table import Keys
from router.off_loop import off_loop
from router.placement import Placement
from transport.protos import worker_pb2 as pb
from transport.registry import Change, WorkerView
from triptych.kv.hashing import extend_hashes, root_hash


@dataclass(frozen=True, slots=True)
class Identity:
    """Workers that share it give a prompt's blocks the same hashes."""

    kv: str  # WorkerHello.kv_identity
    block_tokens: int

    @classmethod
    def of(cls, worker: WorkerView) -> Identity:
        return cls(worker.kv_identity, worker.block_tokens)


@dataclass(frozen=True, slots=True)
class HashedPrompt:
    """A prompt's blocks, as each kind of worker names them."""

    num_tokens: int
    keys: Mapping[Identity, Keys]
    seconds: float  # of hashing


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was known when a prompt was placed."""

    prompt: HashedPrompt
    hits: Mapping[str, PrefixHit] = field(default_factory=dict)  # by worker id
    told: Mapping[str, int] = field(default_factory=dict)  # blocks, without what was only expected


class Prefixes:
    """Lives on one event loop. Without an index it knows nothing, and costs nothing."""

    def __init__(
        self,
        index: BlockIndex | None = None,
        metrics: IndexMetrics | None = None,
        audit: Audit | None = None,
    ) -> None:
        self._index = index
        self._metrics = metrics
        self._audit = audit

    async def hash(
        self, prompt_ids: Sequence[int], salt: str, workers: Sequence[WorkerView]
    ) -> HashedPrompt:
        """Long prompts in a thread."""
        identities = {Identity.of(view) for view in workers if view.kv_identity}
        if self._index is None or not identities:
            return HashedPrompt(len(prompt_ids), {}, 0.0)
        return await off_loop(lambda: _hash(prompt_ids, salt, identities), len(prompt_ids))

    def predict(self, prompt: HashedPrompt) -> Prediction:
        """Who holds which part of it. Place at once, and note it: others ask between two awaits."""
        if self._index is None:
            return Prediction(prompt)
        began = time.perf_counter()
        hits: dict[str, PrefixHit] = {}
        told: dict[str, int] = {}
        for identity, keys in prompt.keys.items():
            # One row at least must be computed: a block that ends the prompt is of no use.
            usable = max(0, prompt.num_tokens - 1) // identity.block_tokens
            found: Lookup = self._index.look_up(keys[:usable])
            hits.update(found.hits)
            told.update(found.told)
        if self._metrics is not None and prompt.keys:
            self._metrics.lookup_seconds.observe(prompt.seconds + time.perf_counter() - began)
        return Prediction(prompt, hits, told)

    @contextlib.contextmanager
    def expecting(self, prediction: Prediction, placement: Placement) -> Iterator[None]:
        """The block lasts until the prompt is computed. Its blocks count as held by the home and by
        the prefill worker from its beginning on: for good, unless it raises.
        """
        chosen = [placement.decode] + ([placement.prefill] if placement.prefill else [])
        done = [
            self._index.expect(worker, keys)
            for worker in chosen
            if self._index is not None
            and (keys := prediction.prompt.keys.get(Identity.of(worker))) is not None
        ]
        worked_out = False
        try:
            yield
            worked_out = True
        finally:
            for tell in done:
                tell(worked_out)

    def compare(self, prediction: Prediction, placement: Placement, stats: pb.RequestStats) -> None:
        """With what the request says of itself at its end.

        `cached_tokens` is of the worker that computed the prompt: of its own cache, whatever the
        home had. A request whose way was not the placed one, or that was placed on blocks that were
        only expected, proves nothing.
        """
        home, prefill = placement.decode, placement.prefill
        by = stats.prefill_worker
        worker = prefill if prefill is not None and by == prefill.worker_id else home
        identity = Identity.of(worker)
        if self._audit is None or stats.fallbacks or identity not in prediction.prompt.keys:
            return
        told = prediction.told.get(worker.worker_id, 0)
        if worker is prefill and prediction.told.get(home.worker_id, 0) > told:
            return  # what the home has more of it may have lent
        hit = prediction.hits.get(worker.worker_id, PrefixHit(0))
        if hit.blocks == told:
            self._audit.compare(worker.worker_id, told * identity.block_tokens, stats.cached_tokens)

    def on_change(self, change: Change) -> None:
        """Workers come and go."""
        if self._index is None:
            return
        if change.kind == "joined":
            self._index.join(change.worker)
            return
        self._index.forget(change.worker)
        if self._audit is not None:
            self._audit.forget(change.worker.worker_id)
        if self._metrics is not None:
            self._metrics.forget(change.worker.worker_id)


def _hash(prompt_ids: Sequence[int], salt: str, identities: set[Identity]) -> HashedPrompt:
    began = time.perf_counter()
    keys: dict[Identity, Keys] = {}
    for identity in identities:
        hashes: list[bytes] = []
        # What a worker makes of it, too: triptych.worker.boot.
        root = root_hash(model="", weights="", layout=identity.kv, salt=salt)
        extend_hashes(hashes, prompt_ids, identity.block_tokens, root)
        keys[identity] = keys_of(hashes)
    return HashedPrompt(len(prompt_ids), keys, time.perf_counter() - began)
