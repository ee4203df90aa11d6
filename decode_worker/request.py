"""One request at its home: its choices, its stream and its clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

from decode_worker.loop import StepOutput
from decode_worker.stop_watch import TextStop
from transport.lanes import Lane
from transport.protos import worker_pb2 as pb
from triptych.engine.sequence import Sequence
from triptych.errors import WorkerError
from triptych.grammar.constraint import CompiledGrammar
from triptych.request import TileCount, choice_seed
from triptych.tokenizer import Tokenizer
from triptych.wire import (
    delta_message,
    sampling_params,
    sparse_of,
    speculation_of,
    tiles_message,
)

_LONGEST_S = 7 * 24 * 3600.0  # for a router that names no deadline


@dataclass(slots=True)
class RemoteStats:
    """What the prefill worker and the fetches told. All times in milliseconds."""

    worker: str = ""
    path: str = ""
    cached_tokens: int = 0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    kv_bytes: int = 0
    fetch_ms: float = 0.0
    hidden_ms: float = 0.0
    tiles: TileCount = field(default_factory=TileCount)
    transfer_ms: float = 0.0


@dataclass(slots=True, eq=False)
class HomeRequest:
    """Choice 0 computes (or fetches) the prompt; its siblings then find it in the prefix cache.

    The lane keeps at most what the choices may still generate: max_tokens each, so a client that
    never reads costs a bounded amount of memory.
    """

    request: pb.GenerateRequest
    sequences: list[Sequence]
    lane: Lane
    ends_at: float  # monotonic seconds; the router's deadline
    arrived_at: float = field(default_factory=time.monotonic)
    num_ended: int = 0  # choices that have their last token
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # all have, or:
    failure: WorkerError | None = None
    first_token_at: float | None = None
    num_tokens: int = 0
    remote: RemoteStats | None = None
    fallbacks: list[str] = field(default_factory=list)

    @property
    def leader(self) -> Sequence:
        return self.sequences[0]

    @property
    def prefill_targets(self) -> list[pb.PrefillTarget]:
        """Whom to ask for the prompt's KV, in turn."""
        first = [self.request.prefill] if self.request.HasField("prefill") else []
        return [*first, *self.request.spare_prefill]

    @property
    def time_left_s(self) -> float:
        return self.ends_at - time.monotonic()

    @property
    def cached_tokens(self) -> int:
        """Of the prompt; tokens that another home drew were never anybody's to pay."""
        found = self.leader.num_cached if self.remote is None else self.remote.cached_tokens
        return min(found, self.leader.num_prompt)

    async def run_out(self) -> None:
        """Until every choice has ended. Raises WorkerError when one cannot."""
        try:
            await asyncio.wait_for(self.ended.wait(), self.time_left_s)
        except TimeoutError:  # the router gives up by itself, unless it hangs
            raise WorkerError("the request's deadline has passed") from None
        if self.failure is not None:
            raise self.failure

    def tell(self, output: StepOutput) -> None:
        """Passes a token on."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
            self.lane.began(pb.RequestBegan(cached_tokens=self.cached_tokens))
        if output.is_plain:
            self.num_tokens += 1
            self.lane.token(output.drawn.token_id)
        elif output.drawn.broken:
            self.failure = WorkerError(output.drawn.broken)
            self.ended.set()
        else:
            self.num_tokens += 1
            self.lane.delta(delta_message(output.delta))
            self.num_ended += output.finish_reason is not None
            if self.num_ended == len(self.sequences):
                self.ended.set()

    def summary(self) -> dict[str, object]:
        """The line that a request leaves in the log."""
        stats = self.stats()
        return {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
            "rounds": stats.rounds,
            "first_token_ms": round(stats.first_token_ms, 1),
            "prefill": stats.prefill_worker or "home",
            "kv_path": stats.kv_path,
            "fallbacks": len(stats.fallbacks),
        }

    def _tiles(self) -> TileCount:
        total = TileCount()
        for sequence in self.sequences:
            total.add(sequence.tiles)
        if self.remote is not None:
            total.add(self.remote.tiles)
        return total

    def stats(self) -> pb.RequestStats:
        leader, remote = self.leader, self.remote
        began = leader.first_step_at or self.arrived_at
        done = leader.prompt_done_at or began
        stats = pb.RequestStats(
            prompt_tokens=leader.num_prompt,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.num_tokens,
            queue_ms=(began - self.arrived_at) * 1e3,
            prefill_ms=(done - began) * 1e3,
            first_token_ms=((self.first_token_at or done) - self.arrived_at) * 1e3,
            fallbacks=self.fallbacks,
            drafted_tokens=sum(sequence.num_drafted for sequence in self.sequences),
            accepted_tokens=sum(sequence.num_accepted for sequence in self.sequences),
            rounds=sum(sequence.num_rounds for sequence in self.sequences),
            drafters=drafter_stats(self.sequences),
            draft_ms=sum(sequence.draft_seconds for sequence in self.sequences) * 1e3,
        )
        if leader.sparse is not None:
            stats.tiles.CopyFrom(tiles_message(self._tiles()))
        if remote is not None:
            stats.queue_ms = remote.queue_ms
            stats.prefill_ms = remote.compute_ms
            stats.transfer_ms = remote.transfer_ms
            stats.kv_bytes = remote.kv_bytes
            stats.kv_path = remote.path
            stats.prefill_worker = remote.worker
            stats.fetch_ms = remote.fetch_ms
            stats.hidden_ms = remote.hidden_ms
        return stats


def drafter_stats(sequences: Seq[Sequence]) -> list[pb.DrafterStats]:
    """Who drafted for all of them together, by name."""
    found: dict[str, pb.DrafterStats] = {}
    for sequence in sequences:
        for name, count in list(sequence.drafts.items()):  # the engine's thread may be counting
            stats = found.setdefault(name, pb.DrafterStats(drafter=name))
            stats.rounds += count.rounds
            stats.drafted_tokens += count.drafted
            stats.accepted_tokens += count.accepted
    return [found[name] for name in sorted(found)]


def open_request(
    request: pb.GenerateRequest,
    lane: Lane,
    *,
    root: bytes,
    block_tokens: int,
    tokenizer: Tokenizer,
    grammar: CompiledGrammar | None = None,
) -> HomeRequest:
    """A request's sequences, one per choice that is not done; `grammar`: what it asked for,
    compiled.
    """
    params = sampling_params(request.sampling)
    speculation = speculation_of(request)
    prompt = list(request.prompt_ids)
    resumed = {item.choice: item for item in request.resumed}
    sequences: list[Sequence] = []
    for choice in range(max(1, request.n)):
        got = resumed.get(choice, pb.Resumed())
        if got.done:
            continue
        stop = TextStop(tokenizer, params.stop) if params.stop else None
        sequences.append(
            Sequence(
                request_id=request.request_id,
                tokens=list(prompt),
                root=root,
                block_tokens=block_tokens,
                params=replace(params, seed=choice_seed(params.seed, choice)),
                choice=choice,
                leader=sequences[0] if sequences else None,
                stop_watch=stop,
                constraint=None if grammar is None else grammar.constraint(len(prompt)),
                resumed=tuple(got.token_ids),
                speculation=speculation,
                sparse=sparse_of(request),
            )
        )
    ends_at = time.monotonic() + (request.time_left_s or _LONGEST_S)
    return HomeRequest(request, sequences, lane, ends_at)
