"""What a request will see at a home and a prefill worker, from what both measured of themselves.

Pure, and of no policy: `predict` judges anybody's placement, e.g. to refuse a request whose first
token would come too late.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

from router.placement.candidates import sequences_at
from router.placement.request import Placement, PlacementRequest, Prediction
from transport.pace import Pace, StepCost, pairs_between
from transport.registry import WorkerView

# Where nobody of a role has measured anything yet. Only ratios between candidates matter then.
_UNKNOWN_STEP = StepCost(base_s=0.005, row_s=1e-4, pair_s=1e-9)
_CHUNK_TOKENS = 512  # engine.chunk_tokens
_ANSWER_TOKENS = 256  # believed of a request, at most its max_tokens
_SHORT_ANSWER = 32  # tokens
_ON_THE_WAY_S = 0.05  # a prompt sent so shortly before a report may be missing in it


@dataclass(frozen=True, slots=True)
class Outlook:
    """A worker, as the request that is being placed finds it. Seconds are predicted."""

    view: WorkerView
    prefill: StepCost
    decode: StepCost
    chunk_tokens: int
    queue_s: float  # prompts queued or sent there: computed before this one
    queued: int  # so many requests wait there, this one's competitors
    running: int  # sequences, those to come included
    cached: int  # tokens of this prompt
    lent: int  # of a home: tokens of this prompt that it can lend to a prefill worker
    compute_s: float  # of what is not cached, alone on the worker
    steps: int  # that it takes
    last_chunk_s: float  # the longest of those steps: it attends to the whole prompt
    queue_chunk_s: float  # a step of the queue, the mean
    step_s: float  # of decoding, as many sequences as run now
    fetch_s: float = 0.0  # until what the home lends is there

    @property
    def tokens_per_step(self) -> float:
        return max(1.0, self.view.pace.tokens_per_step)

    @property
    def streams_s(self) -> float:
        """What the sequences that decode add to a step that computes a chunk of a prompt."""
        return max(0.0, self.step_s - self.decode.base_s)

    def step_with(self, tokens: int) -> float:
        """A decode step with one more sequence, which has so many tokens."""
        return self.step_s + self.decode.seconds(1, tokens, steps=0)


def share_of_answer(steps: float) -> float:
    """Of the tokens of a short answer: those are hurt most by a few long steps."""
    return min(1.0, steps / _SHORT_ANSWER)


def answer_tokens(request: PlacementRequest) -> int:
    return max(1, min(_ANSWER_TOKENS, request.max_tokens or _ANSWER_TOKENS))


def outlooks(request: PlacementRequest, views: Sequence[WorkerView]) -> list[Outlook]:
    """Of workers of one role. Who has not measured yet is as fast as the median of the others."""
    prefill = _typical(view.pace.prefill for view in views)
    decode = _typical(view.pace.decode for view in views)
    return [_look(request, view, prefill, decode) for view in views]


def with_history(request: PlacementRequest, home: Outlook, prefill: Outlook) -> Outlook:
    """`prefill`, when it is `home` that asks it: what that one holds of the prompt is fetched where
    this is sooner than computing it, as workers decide (prefill_worker/fetch_or_compute.py).
    """
    pace = home.view.pace
    if home.lent <= prefill.cached or not pace.link_bytes_s or not pace.token_bytes:
        return prefill
    fetch_s = (home.lent - prefill.cached) * pace.token_bytes / pace.link_bytes_s
    steps, compute_s, last_chunk_s = _computing(
        prefill.prefill, prefill.chunk_tokens, home.lent, request.prompt_tokens
    )
    if prefill.compute_s - compute_s <= fetch_s:
        return prefill
    return replace(
        prefill,
        cached=home.lent,
        compute_s=compute_s,
        steps=steps,
        last_chunk_s=last_chunk_s,
        fetch_s=fetch_s,
    )


def predict(request: PlacementRequest, home: Outlook, prefill: Outlook | None) -> Prediction:
    """`prefill`: as `with_history` made it. None: the home computes the prompt, beside the
    sequences that it decodes.
    """
    computing = prefill or home
    compute_s, transfer_s = computing.compute_s, 0.0
    if prefill is None:
        compute_s += home.steps * home.streams_s
    else:
        transfer_s = _transfer_s(request, home, prefill)
    # Both queues are left behind before the prompt is computed: its KV needs room at home first.
    wait_s = max(computing.queue_s, _room_s(request, home), computing.fetch_s)
    step_s = home.step_with(request.prompt_tokens)
    # Prompts that the home still computes when this one decodes make its steps longer.
    beside_s = 0.0 if prefill is None else max(0.0, home.queue_s - wait_s - compute_s)
    long_s = home.queue_chunk_s + home.streams_s
    mean_s = step_s + share_of_answer(beside_s / long_s) * max(0.0, long_s - step_s)
    return Prediction(
        wait_s=wait_s,
        compute_s=compute_s,
        transfer_s=transfer_s,
        itl_s=mean_s / home.tokens_per_step,
        cached_tokens=computing.cached,
        missing_tokens=request.prompt_tokens - computing.cached,
        first_step_s=step_s,
    )


def predict_placement(
    request: PlacementRequest, placement: Placement, workers: Sequence[WorkerView]
) -> Prediction:
    """Of any policy's placement among `workers`."""
    if placement.prediction is not None:
        return placement.prediction

    def look(chosen: WorkerView) -> Outlook:
        alike = [view for view in workers if view.role == chosen.role]
        found = outlooks(request, alike)
        return next(seen for seen in found if seen.view.worker_id == chosen.worker_id)

    home = look(placement.decode)
    if placement.prefill is None:
        return predict(request, home, None)
    return predict(request, home, with_history(request, home, look(placement.prefill)))


def _look(
    request: PlacementRequest, view: WorkerView, prefill: StepCost, decode: StepCost
) -> Outlook:
    prefill, decode = view.pace.prefill or prefill, view.pace.decode or decode
    chunk = view.pace.chunk_tokens or _CHUNK_TOKENS
    since = view.reported_at - _ON_THE_WAY_S
    fresh = [sent for sent in request.sent.get(view.worker_id, ()) if sent.at > since]
    queue_steps = -(-view.queued_tokens // chunk)
    reported_s = prefill.seconds(view.queued_tokens, view.queued_pairs, queue_steps)
    cached, tokens = request.cached_tokens(view), request.prompt_tokens
    used, running = max(0, view.num_blocks - view.free_blocks), sequences_at(request, view)
    steps, compute_s, last_chunk_s = _computing(prefill, chunk, cached, tokens)
    step_s = decode.seconds(running, used * view.block_tokens)
    chunk_s = reported_s / queue_steps if queue_steps else 0.0
    if view.role == "decode":  # each of those steps has the streams' rows too
        reported_s += queue_steps * max(0.0, step_s - decode.base_s)
    return Outlook(
        view=view,
        prefill=prefill,
        decode=decode,
        chunk_tokens=chunk,
        queue_s=reported_s + sum(sent.work_s for sent in fresh),
        queued=len(fresh) + (view.waiting if view.role == "decode" else running),
        running=running,
        cached=cached,
        lent=request.lent_tokens(view),
        compute_s=compute_s,
        steps=steps,
        last_chunk_s=last_chunk_s,
        queue_chunk_s=max(chunk_s, prefill.seconds(chunk, 0.0)),
        step_s=step_s,
    )


def _computing(cost: StepCost, chunk: int, cached: int, tokens: int) -> tuple[int, float, float]:
    """Steps, their seconds, and those of the longest one, which attends to the whole prompt."""
    missing = tokens - cached
    steps, last = -(-missing // chunk), min(chunk, missing)
    seconds = cost.seconds(missing, pairs_between(cached, tokens), steps)
    return steps, seconds, cost.seconds(last, last * tokens)


def _transfer_s(request: PlacementRequest, home: Outlook, prefill: Outlook) -> float:
    """What is left to fetch when the last chunk is computed: that chunk, and what the link could
    not take meanwhile. 0 where nobody measured the link.
    """
    pace: Pace = home.view.pace
    if not pace.link_bytes_s or not pace.token_bytes:
        return 0.0
    token_s = pace.token_bytes / pace.link_bytes_s
    missing = request.prompt_tokens - home.cached
    last_chunk = min(missing, prefill.chunk_tokens)
    return max(last_chunk * token_s, missing * token_s - prefill.compute_s)


def _room_s(request: PlacementRequest, home: Outlook) -> float:
    """Until the home has blocks for the prompt: sequences leave as their answers end."""
    view = home.view
    if not view.num_blocks:
        return 0.0
    wanted = -(-(request.prompt_tokens + answer_tokens(request)) // view.block_tokens)
    short = wanted * (1 + view.waiting) - view.free_blocks
    used = view.num_blocks - view.free_blocks
    if short <= 0 or used <= 0:
        return 0.0
    return short / used * answer_tokens(request) * home.step_s / home.tokens_per_step


def _typical(costs: Iterable[StepCost | None]) -> StepCost:
    return _median(tuple(cost for cost in costs if cost is not None))


@lru_cache(maxsize=64)
def _median(known: tuple[StepCost, ...]) -> StepCost:
    if not known:
        return _UNKNOWN_STEP
    return StepCost(
        base_s=median(cost.base_s for cost in known),
        row_s=median(cost.row_s for cost in known),
        pair_s=median(cost.pair_s for cost in known),
    )
