"""Our policy: the placement that costs the objectives least, of this request and of the others.

The cost is counted in shares u of the objectives (router.slo). It is convex, so what is nearly
spent is dear and what is plentiful costs little.

    own       u + u² of TTFT, u² of ITL
    compute   the seconds that the prompt takes are lost to whoever waits in that pool, now or
              later: a price for each, which grows with how many wait and with how late they are,
              and is low while somebody there is idle
    batch     every sequence at the home decodes with one more, in longer steps
    beside    of a prompt computed at home, or where experts are shared: steps of every sequence
              there become as long as the prompt's last one, for a share of a short answer
    home      a toll, where there are prefill workers: the pool that is there for prompts is not
              left for less

Beyond saturation not everybody can be in time. A request that is late wherever it goes is sent
where others are late already: cost hardly grows beyond the objective, and the price is low there.
So a few workers fall behind and the others stay in time, instead of all being a little too late.

So a cached prefix is worth the seconds it saves, times everybody who would have waited for them. A
prefix whose holder alone is loaded is computed again elsewhere, and then there are two holders;
where all are loaded it is not, since that would load them more. And a home computes a prompt by
itself where that costs its streams less than it spares the prefill workers.

Bounded load ("Consistent hashing with bounded loads", Mirrokni et al., SODA 2018): nobody with more
work outstanding than (1 + ε) of the mean of the others in its pool gets any more, whatever it has
cached. (Of the others: with its own work in the mean, a pool of two would have no bound.) A worker
above that bound works off what it has, so it is above for no longer than its own queue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.placement.candidates import home_candidates, prefill_candidates, spares_of
from router.placement.order import preference
from router.placement.predict import Outlook, outlooks, predict, share_of_answer, with_history
from router.placement.request import Placement, PlacementRequest, Prediction
from transport.registry import WorkerView

EPSILON = 1.0  # of bounded load
_SLACK = 0.5  # of the TTFT objective: queues shorter than that are never out of bounds
_PRICE = 3.0  # of a second of compute when nobody waits: it makes blocks that throw out others
_CROWD = 3.0  # times those who wait now: as many come before the pool is idle again
_ALIKE = 0.02  # costs that differ by less: session affinity, then turns, decide
_LATER = 0.3  # of a TTFT objective that is missed: for each time that it passes again
_HOPELESS = 0.2  # of the price, at workers whose queue is longer than the objective
_HOME_TOLL = 0.02  # less is not worth leaving the pool that is there for prompts
_MOST = 4  # candidates of a role that are tried with each other, the best ones by themselves


@dataclass(frozen=True, slots=True)
class _Choice:
    home: Outlook
    prefill: Outlook | None
    prediction: Prediction
    cost: float

    @property
    def computing(self) -> Outlook:
        return self.prefill or self.home


def predicted(request: PlacementRequest, workers: Sequence[WorkerView]) -> Placement:
    """Raises CapacityError when there is no home."""
    homes = outlooks(request, home_candidates(request, workers))
    pool = outlooks(request, prefill_candidates(request, workers))
    roomy_homes, roomy_pool = _within_bounds(request, homes), _within_bounds(request, pool)
    at_home, elsewhere = _price(request, homes), _price(request, pool)
    toll = _HOME_TOLL if pool else 0.0
    # Of a home that computes the prompt although there are prefill workers.
    instead_s = _bound(request, _work(pool) / len(pool)) if pool else math.inf
    saturated = _is_saturated(request, pool or homes)
    few_homes = _best(request, roomy_homes, at_home, saturated)
    few = _best(request, roomy_pool, elsewhere, saturated)
    choices = [
        _judge(request, home, prefill, at_home if prefill is None else elsewhere, toll, saturated)
        for home in few_homes
        for prefill in (*few, None)
        if prefill is not None or home.queue_s <= instead_s
    ]
    best = _prefer(request, choices)
    ranked = sorted(pool, key=lambda outlook: outlook.queue_s + outlook.compute_s)
    prefill = None if best.prefill is None else best.prefill.view
    return Placement(
        best.home.view,
        prefill,
        _reason(best, [*pool, *homes], [*roomy_pool, *roomy_homes]),
        () if prefill is None else spares_of([outlook.view for outlook in ranked], prefill),
        replace(best.prediction, cost=best.cost),
    )


def _judge(
    request: PlacementRequest,
    home: Outlook,
    prefill: Outlook | None,
    price: float,
    toll: float,
    saturated: bool,
) -> _Choice:
    if prefill is not None:
        prefill = with_history(request, home, prefill)
    seen = predict(request, home, prefill)
    cost = (
        _own(request, seen, saturated)
        + price * _delay(request, prefill or home, saturated)
        + _batch(request, home)
        + _beside(request, home, prefill)
        + (toll if prefill is None else 0.0)
    )
    return _Choice(home, prefill, seen, cost)


def _is_saturated(request: PlacementRequest, pool: Sequence[Outlook]) -> bool:
    """More is outstanding than the pool gets done within the objective: not all can be in time."""
    return _work(pool) > len(pool) * request.slo.ttft_s


def _delay(request: PlacementRequest, computing: Outlook, saturated: bool) -> float:
    """Of whoever comes later to that worker. A late request should go where those are who have
    little to lose.
    """
    share = computing.compute_s / request.slo.ttft_s
    return _HOPELESS * share if saturated and computing.queue_s > request.slo.ttft_s else share


def _own(request: PlacementRequest, seen: Prediction, saturated: bool) -> float:
    ttft = _of_ttft(seen.ttft_s / request.slo.ttft_s, saturated)
    return ttft + (seen.itl_s / request.slo.itl_s) ** 2


def _of_ttft(share: float, saturated: bool) -> float:
    """Of a share of the objective. Whoever misses it in a saturated pool is lost to goodput,
    however late it is: little grows from there.
    """
    if saturated and share > 1:
        return 2 + _LATER * (share - 1)
    return share + share**2


def _slope(share: float) -> float:
    """Of `_of_ttft`."""
    return 1 + 2 * share


def _price(request: PlacementRequest, pool: Sequence[Outlook]) -> float:
    """Of a second of the pool's computing, in seconds of everybody's waiting."""
    total_s = _work(pool)
    if not total_s:
        return _PRICE
    waiting = sum(outlook.queued for outlook in pool) / len(pool)
    late = _slope(total_s / len(pool) / request.slo.ttft_s)
    all_busy = min(outlook.queue_s for outlook in pool) * len(pool) / total_s
    return _PRICE + _CROWD * waiting * late * all_busy


def _batch(request: PlacementRequest, home: Outlook) -> float:
    before, after = home.step_s, home.step_with(request.prompt_tokens)
    unit_s = home.tokens_per_step * request.slo.itl_s
    return home.running * ((after / unit_s) ** 2 - (before / unit_s) ** 2)


def _beside(request: PlacementRequest, home: Outlook, prefill: Outlook | None) -> float:
    """A prefill worker delays decoding elsewhere by as much as it keeps shared experts busy."""
    share = 1.0 if prefill is None else prefill.view.pace.expert_wait
    if not share or not home.running:
        return 0.0
    unit_s = home.tokens_per_step * request.slo.itl_s
    part = share_of_answer(home.steps)
    chunk_s = home.last_chunk_s + home.streams_s
    longer = (chunk_s / unit_s) ** 2 - (home.step_s / unit_s) ** 2
    return share * home.running * part * max(0.0, longer)


def _best(
    request: PlacementRequest, outlooks: Sequence[Outlook], price: float, saturated: bool
) -> Sequence[Outlook]:
    """A few of them, by what each costs by itself."""
    if len(outlooks) <= _MOST:
        return outlooks

    def alone(outlook: Outlook) -> float:
        ttft_s = outlook.queue_s + outlook.compute_s
        prompt = _of_ttft(ttft_s / request.slo.ttft_s, saturated)
        prompt += price * _delay(request, outlook, saturated)
        return prompt + outlook.step_s / request.slo.itl_s

    return sorted(outlooks, key=alone)[:_MOST]


def _within_bounds(request: PlacementRequest, pool: Sequence[Outlook]) -> Sequence[Outlook]:
    """Never nobody: the least loaded has at most the mean of the others."""
    if len(pool) < 2:
        return pool
    total_s, others = _work(pool), len(pool) - 1
    return [
        outlook
        for outlook in pool
        if outlook.queue_s <= _bound(request, (total_s - outlook.queue_s) / others)
    ]


def _work(pool: Sequence[Outlook]) -> float:
    """Outstanding, in seconds."""
    return sum(outlook.queue_s for outlook in pool)


def _bound(request: PlacementRequest, mean_s: float) -> float:
    """Seconds of outstanding work with which one may still get more beside others' mean."""
    return max((1 + EPSILON) * mean_s, _SLACK * request.slo.ttft_s)


def _prefer(request: PlacementRequest, choices: Sequence[_Choice]) -> _Choice:
    """The cheapest; of those that are about as cheap the one that the session had before."""
    least = min(choice.cost for choice in choices)
    alike = [choice for choice in choices if choice.cost <= (1 + _ALIKE) * least]
    if not request.session:
        return min(alike, key=lambda choice: choice.cost)
    return max(alike, key=lambda choice: preference(request.session, choice.home.view.worker_id))


def _reason(best: _Choice, everybody: Sequence[Outlook], roomy: Sequence[Outlook]) -> str:
    most = max(outlook.cached for outlook in everybody)
    if best.prefill is None and everybody[0].view.role == "prefill":
        return "at-home"
    if not most:
        return "load"
    if best.computing.cached == most:
        return "prefix"
    return "replicate" if any(outlook.cached == most for outlook in roomy) else "bounded"
