"""The default policy: what it predicts, and what a user notices of its choices."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.index.hit import PrefixHit
from router.placement import PlacementRequest, Sent, Slo
from router.placement.least_cost import EPSILON, predicted
from router.placement.predict import outlooks, predict, predict_placement, with_history
from router.placement.simple import least_loaded
from transport.pace import Pace, StepCost
from transport.registry import WorkerView
from triptych.testing.views import PACE, paced_view, worker_view


def asked(tokens: int = 1600, turn: int = 0, cached: Any = (), **fields: Any) -> PlacementRequest:
    """`cached`: tokens of the prompt by worker id."""
    hits = {worker_id: PrefixHit(count // 16) for worker_id, count in dict(cached).items()}
    return PlacementRequest("tiny", turn, prompt_tokens=tokens, cached=hits, **fields)


def computing(request: PlacementRequest, workers: list[WorkerView]) -> str:
    return predicted(request, workers).computing.worker_id


def test_a_cached_prefix_saves_its_compute_time() -> None:
    [home] = outlooks(asked(cached={"d0": 800}), [paced_view("d0")])
    [cold] = outlooks(asked(), [paced_view("d0")])
    assert (home.compute_s, cold.compute_s) == pytest.approx((0.8, 1.6))


def test_the_first_token_waits_for_the_queue_the_prompt_and_the_last_of_the_kv() -> None:
    link = replace(PACE, link_bytes_s=1e6, token_bytes=1000)
    [home] = outlooks(asked(), [paced_view("d0", pace=link)])
    [prefill] = outlooks(asked(), [paced_view("p0", "prefill", queued_tokens=500, running=1)])
    seen = predict(asked(), home, prefill)
    assert (seen.wait_s, seen.compute_s) == pytest.approx((0.5, 1.6))
    assert seen.transfer_s == pytest.approx(0.1)  # the last chunk's; the rest was hidden
    assert seen.ttft_s == pytest.approx(0.5 + 1.6 + 0.1 + home.step_with(1600))


def test_streams_beside_it_lengthen_each_step_of_a_homes_queue_and_of_nobody_elses() -> None:
    pace = replace(PACE, decode=StepCost(0.01, 0.002, 0.0))
    waits = [
        outlooks(asked(), [paced_view("w", role, pace=pace, queued_tokens=1000, running=running)])
        for role, running in (("decode", 0), ("decode", 20), ("prefill", 20))
    ]
    alone, beside, elsewhere = (found.queue_s for [found] in waits)
    assert beside - alone == pytest.approx(10 * 20 * 0.002)  # ten steps of 100 rows
    assert elsewhere == alone


def test_a_link_that_cannot_keep_up_delays_the_first_token() -> None:
    slow = replace(PACE, link_bytes_s=5e5, token_bytes=1000)
    [home] = outlooks(asked(), [paced_view("d0", pace=slow)])
    [prefill] = outlooks(asked(), [paced_view("p0", "prefill")])
    assert predict(asked(), home, prefill).transfer_s == pytest.approx(1600 * 0.002 - 1.6)


def test_what_is_cached_at_home_need_not_be_fetched() -> None:
    slow = replace(PACE, link_bytes_s=1e5, token_bytes=1000)
    request = asked(cached={"d0": 1520})
    [home] = outlooks(request, [paced_view("d0", pace=slow)])
    [prefill] = outlooks(request, [paced_view("p0", "prefill")])
    assert predict(request, home, prefill).transfer_s == pytest.approx(0.8)


def test_what_a_home_lends_need_not_be_computed() -> None:
    link = replace(PACE, link_bytes_s=1e6, token_bytes=100)
    request = asked(cached={"d0": 1440, "p0": 160}, told={"d0": 90})
    [home] = outlooks(request, [paced_view("d0", pace=link)])
    [prefill] = outlooks(request, [paced_view("p0", "prefill")])
    helped = with_history(request, home, prefill)
    assert (helped.cached, helped.compute_s) == (1440, pytest.approx(0.16))
    assert predict(request, home, helped).wait_s == pytest.approx(1280 * 1e-4)  # the fetch
    assert predict(request, home, helped).cached_tokens == 1440


def test_what_is_sooner_computed_than_fetched_is_not_lent() -> None:
    slow = replace(PACE, link_bytes_s=1e4, token_bytes=100)
    request = asked(cached={"d0": 1440}, told={"d0": 90})
    [home] = outlooks(request, [paced_view("d0", pace=slow)])
    [prefill] = outlooks(request, [paced_view("p0", "prefill")])
    assert with_history(request, home, prefill) is prefill


def test_what_is_only_on_its_way_to_a_home_cannot_be_lent() -> None:
    link = replace(PACE, link_bytes_s=1e6, token_bytes=100)
    request = asked(cached={"d0": 1440})
    [home] = outlooks(request, [paced_view("d0", pace=link)])
    [prefill] = outlooks(request, [paced_view("p0", "prefill")])
    assert with_history(request, home, prefill) is prefill


def test_beyond_saturation_who_is_late_anyway_goes_where_others_are_late_already() -> None:
    tight = Slo(ttft_s=1.0, itl_s=0.05)
    homes = [paced_view("d0", running=30)]

    def pool(*queued: int) -> list[WorkerView]:
        named = {f"p{number}": tokens for number, tokens in enumerate(queued)}
        return [paced_view(i, "prefill", queued_tokens=n, running=1) for i, n in named.items()]

    saturated = [*homes, *pool(500, 1300, 1300, 1300)]
    assert computing(asked(50, slo=tight), saturated) == "p0"
    assert computing(asked(3000, slo=tight), saturated) != "p0"
    assert computing(asked(3000, slo=tight), [*homes, *pool(500, 900, 900, 900)]) == "p0"


def test_tokens_that_drafts_bring_shorten_the_time_between_tokens() -> None:
    fast = replace(PACE, tokens_per_step=2.0)
    plain, drafting = outlooks(asked(), [paced_view("d0"), paced_view("d1", pace=fast)])
    request = asked()
    assert predict(request, drafting, None).itl_s == predict(request, plain, None).itl_s / 2


def test_a_home_without_free_blocks_makes_a_request_wait() -> None:
    full = paced_view("d0", num_blocks=1000, free_blocks=50, running=10)
    [home] = outlooks(asked(), [full])
    assert predict(asked(), home, None).wait_s > 0


def test_prompts_sent_since_the_last_report_count_as_queued() -> None:
    sent = {"p0": [Sent(at=9.0, tokens=500, work_s=0.5), Sent(at=10.5, tokens=700, work_s=0.7)]}
    view = paced_view("p0", "prefill", queued_tokens=500, running=1, reported_at=10.0)
    [outlook] = outlooks(asked(now=10.6, sent=sent), [view])
    assert outlook.queue_s == pytest.approx(0.5 + 0.7)  # the report knows of the first one


def test_who_has_not_measured_itself_is_as_fast_as_its_peers() -> None:
    views = [paced_view("p0", "prefill"), paced_view("p1", "prefill", pace=Pace())]
    known, unknown = outlooks(asked(), views)
    assert unknown.compute_s == known.compute_s


def test_a_follow_up_goes_where_its_prefix_is() -> None:
    workers = [paced_view("d0"), *(paced_view(f"p{n}", "prefill") for n in range(4))]
    for turn in range(4):
        placement = predicted(asked(turn=turn, cached={"p2": 1500}), workers)
        assert placement.computing.worker_id == "p2"
        assert placement.reason == "prefix"


def test_a_prefix_is_computed_again_when_its_holder_is_busy_for_longer_than_that_takes() -> None:
    workers = [paced_view("d0", running=20), paced_view("p1", "prefill")]
    for busy in ("p0", "p2"):
        workers.append(paced_view(busy, "prefill", queued_tokens=4000, running=1))
    placement = predicted(asked(cached={"p0": 1500}), workers)
    assert (placement.computing.worker_id, placement.reason) == ("p1", "replicate")


def test_a_hot_prefix_spreads_over_the_pool_during_a_burst() -> None:
    """A system prompt that everybody shares must not send everybody to one worker."""
    workers = [paced_view("d0", running=20), *(paced_view(f"p{n}", "prefill") for n in range(4))]
    sent: dict[str, list[Sent]] = {}
    chosen: Counter[str] = Counter()
    for turn in range(20):  # which can all be in time
        holders = {"p0": 800} | dict.fromkeys(chosen, 800)
        request = asked(turn=turn, cached=holders, sent=sent, now=1.0)
        placement = predicted(request, workers)
        assert placement.prediction is not None
        name = placement.computing.worker_id
        chosen[name] += 1
        sent.setdefault(name, []).append(Sent(1.0, 800, placement.prediction.compute_s))
    pool = [chosen[f"p{n}"] for n in range(4)]
    assert max(pool) <= 2 * min(pool)


def test_a_faster_worker_gets_more() -> None:
    fast = replace(PACE, prefill=StepCost(0.0, 0.0005, 0.0))
    workers = [paced_view("d0", running=20), paced_view("p0", "prefill", queued_tokens=100)]
    workers.append(paced_view("p1", "prefill", queued_tokens=200, pace=fast))
    assert computing(asked(), workers) == "p1"


def test_an_idle_home_prefills_a_follow_up_whose_prefix_it_has() -> None:
    workers = [paced_view("d0"), paced_view("p0", "prefill", queued_tokens=3000, running=3)]
    placement = predicted(asked(cached={"d0": 1584}), workers)
    assert (placement.prefill, placement.reason) == (None, "at-home")


def test_a_home_full_of_streams_does_not_prefill_what_would_stall_them() -> None:
    tight = Slo(ttft_s=5.0, itl_s=0.05)
    workers = [paced_view("d0", running=30), paced_view("p0", "prefill", queued_tokens=500)]
    assert computing(asked(slo=tight), workers) == "p0"


def test_idle_workers_whose_steps_seem_to_take_no_time_can_be_placed_on() -> None:
    free = Pace.of(Pace(StepCost(0, 0, 1e-9), StepCost(0, 0, 1e-9), 512).message())
    workers = [paced_view("d0", "decode", pace=free), paced_view("p0", "prefill", pace=free)]
    assert predicted(asked(), workers).decode.worker_id == "d0"


def test_without_a_prefill_pool_the_homes_prefill() -> None:
    placement = predicted(asked(cached={"d1": 1500}), [paced_view("d0"), paced_view("d1")])
    assert (placement.decode.worker_id, placement.prefill) == ("d1", None)
    assert placement.reason == "prefix"


def test_streams_go_to_the_home_where_steps_are_short() -> None:
    workers = [paced_view("d0", running=30), paced_view("d1", running=3)]
    workers.append(paced_view("p0", "prefill"))
    assert predicted(asked(), workers).decode.worker_id == "d1"


def test_a_session_stays_at_its_home_while_that_costs_nothing() -> None:
    workers = [paced_view(f"d{n}") for n in range(4)]
    homes = {predicted(asked(turn=t, session="a"), workers).decode.worker_id for t in range(8)}
    assert len(homes) == 1
    workers = [replace(view, running=50 * (view.worker_id in homes)) for view in workers]
    assert predicted(asked(session="a"), workers).decode.worker_id not in homes


def test_sessions_spread_over_equal_homes() -> None:
    workers = [paced_view(f"d{n}") for n in range(4)]
    homes = {predicted(asked(session=f"s{n}"), workers).decode.worker_id for n in range(40)}
    assert len(homes) == 4


def test_the_spares_are_the_next_best_prefill_workers() -> None:
    workers = [paced_view("d0", running=30)]
    workers += [paced_view(f"p{n}", "prefill", queued_tokens=100 * n) for n in range(5)]
    placement = predicted(asked(), workers)
    assert placement.computing.worker_id == "p0"
    assert [view.worker_id for view in placement.spares] == ["p1", "p2"]


def test_shared_experts_make_a_prefill_worker_dearer_when_others_decode() -> None:
    """Where homes wait for the same FFN workers, a prompt computed elsewhere delays them too."""
    waits = replace(PACE, expert_wait=0.9)
    workers = [paced_view("d0", running=30), paced_view("p0", "prefill")]
    free = predicted(asked(), workers)
    shared = predicted(asked(), [workers[0], replace(workers[1], pace=waits)])
    assert free.prediction is not None
    assert shared.prediction is not None
    assert shared.prediction.cost > free.prediction.cost


def test_the_first_token_of_any_policys_placement_can_be_predicted() -> None:
    workers = [worker_view("d0"), worker_view("p0", "prefill", queued_tokens=10_000)]
    placement = least_loaded(asked(), workers)
    late = predict_placement(asked(), placement, workers)
    soon = predict_placement(asked(), placement, [workers[0], worker_view("p0", "prefill")])
    assert late.wait_s > 0
    assert soon.ttft_s < late.ttft_s or soon.wait_s == 0


@given(
    queues=st.lists(st.integers(0, 200_000), min_size=2, max_size=12),
    cached=st.lists(st.integers(0, 1600), min_size=12, max_size=12),
    home_queue=st.integers(0, 200_000),
)
def test_nobody_above_the_bound_gets_more_whatever_it_has_cached(
    queues: list[int], cached: list[int], home_queue: int
) -> None:
    pool = [paced_view(f"p{n}", "prefill", queued_tokens=q) for n, q in enumerate(queues)]
    workers = [paced_view("d0", queued_tokens=home_queue), *pool]
    holders = {f"p{n}": tokens for n, tokens in enumerate(cached)} | {"d0": 1600}
    request = asked(cached=holders)
    chosen = predicted(request, workers).computing
    outstanding = chosen.queued_tokens
    others = sum(queues) - (outstanding if chosen.role == "prefill" else 0)
    mean_s = others / (len(queues) - (chosen.role == "prefill")) * 0.001
    assert outstanding * 0.001 <= max((1 + EPSILON) * mean_s, request.slo.ttft_s)


@pytest.mark.parametrize("behind", [6_000, 40_000])
def test_nobody_waits_behind_the_late_one_of_two_workers_while_the_other_idles(behind: int) -> None:
    workers = [
        paced_view("d0", queued_tokens=6_000),
        paced_view("p0", "prefill", queued_tokens=behind, running=5),
        paced_view("p1", "prefill"),
    ]
    assert computing(asked(3000), workers) != "p0"
    assert computing(asked(3000, cached={"p0": 2800}), workers) != "p0"


def test_a_pace_that_puts_everything_on_attention_is_a_pace() -> None:
    of_pairs = replace(PACE, prefill=StepCost(0.0, 0.0, 1e-6))
    workers = [paced_view("d0", pace=of_pairs), paced_view("p0", "prefill", pace=of_pairs)]
    placement = predicted(asked(), workers)
    assert placement.prediction is not None and placement.prediction.ttft_s > 0
