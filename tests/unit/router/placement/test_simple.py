"""Policies that look at load alone: which home, which prefill worker, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from router.placement import POLICIES, PlacementRequest, homes
from router.placement.simple import least_loaded, power_of_two, round_robin
from triptych.errors import CapacityError
from triptych.testing.views import worker_view as worker


def asked(turn: int = 0, **fields: Any) -> PlacementRequest:
    return PlacementRequest(model="tiny", turn=turn, **fields)


ALL = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def test_the_home_with_the_fewest_sequences_is_chosen() -> None:
    workers = [worker("d0", running=3), worker("d1", running=1, waiting=1), worker("d2", running=5)]
    placement = least_loaded(asked(), workers)
    assert (placement.decode.worker_id, placement.reason) == ("d1", "least-loaded")


def test_calls_that_the_reports_do_not_know_of_yet_count() -> None:
    workers = [worker("d0"), worker("d1", running=2)]
    assert least_loaded(asked(choices={"d0": 3}), workers).decode.worker_id == "d1"


def test_a_report_and_our_own_calls_are_not_added_up() -> None:
    workers = [worker("d0", running=3), worker("d1", running=4)]
    assert least_loaded(asked(choices={"d0": 3, "d1": 0}), workers).decode.worker_id == "d0"


def test_free_blocks_decide_between_equally_busy_homes() -> None:
    workers = [worker("d0", free_blocks=1), worker("d1", free_blocks=9)]
    assert least_loaded(asked(), workers).decode.worker_id == "d1"


@pytest.mark.parametrize("policy", [least_loaded, round_robin])
def test_equal_homes_share_the_work(policy: Any) -> None:
    workers = [worker("d0"), worker("d1"), worker("d2")]
    chosen = Counter(policy(asked(turn), workers).decode.worker_id for turn in range(9))
    assert chosen == {"d0": 3, "d1": 3, "d2": 3}


def test_round_robin_ignores_the_load() -> None:
    workers = [worker("d0", running=50), worker("d1")]
    assert round_robin(asked(turn=2), workers).decode.worker_id == "d0"


@ALL
def test_draining_workers_and_other_models_get_nothing(policy: Any) -> None:
    workers = [
        worker("d0", draining=True),
        worker("d1", model="other"),
        worker("d2"),
        worker("p0", "prefill", draining=True),
    ]
    for turn in range(4):
        placement = policy(asked(turn), workers)
        assert (placement.decode.worker_id, placement.prefill) == ("d2", None)


@ALL
def test_without_a_home_there_is_no_placement(policy: Any) -> None:
    with pytest.raises(CapacityError, match="no decode worker for tiny"):
        policy(asked(), [worker("p0", "prefill"), worker("d0", draining=True)])


@ALL
def test_a_lost_home_is_not_chosen_again(policy: Any) -> None:
    workers = [worker("d0"), worker("d1", running=9)]
    for turn in range(3):
        placement = policy(asked(turn, excluded=frozenset({"d0"})), workers)
        assert placement.decode.worker_id == "d1"


def test_the_prefill_worker_with_the_shortest_queue_of_tokens_is_named() -> None:
    workers = [
        worker("d0"),
        worker("p0", "prefill", queued_tokens=900, running=1),
        worker("p1", "prefill", queued_tokens=100, running=7),
    ]
    placement = least_loaded(asked(), workers)
    assert placement.prefill is not None
    assert placement.prefill.worker_id == "p1"


def test_prompts_under_way_count_as_queued() -> None:
    workers = [worker("d0"), worker("p0", "prefill"), worker("p1", "prefill", queued_tokens=50)]
    placement = least_loaded(asked(prefilling={"p0": 400}), workers)
    assert placement.prefill is not None
    assert placement.prefill.worker_id == "p1"


def test_the_next_best_prefill_workers_are_spares() -> None:
    workers = [worker("d0")]
    workers += [worker(f"p{n}", "prefill", queued_tokens=10 * n) for n in range(5)]
    placement = least_loaded(asked(turn=3), workers)
    assert [view.worker_id for view in placement.spares] == ["p1", "p2"]


def test_of_two_that_are_drawn_the_less_loaded_is_chosen() -> None:
    workers = [worker(f"d{n}", running=n) for n in range(8)]
    chosen = Counter(power_of_two(asked(turn), workers).decode.worker_id for turn in range(400))
    assert chosen["d7"] == 0  # there is always a less loaded one beside it
    assert chosen["d0"] > chosen["d3"] > chosen["d6"] > 0


def test_power_of_two_does_not_send_a_burst_to_the_one_idlest_worker() -> None:
    workers = [worker("d0"), *(worker(f"d{n}", running=1) for n in range(1, 8))]
    chosen = Counter(power_of_two(asked(turn), workers).decode.worker_id for turn in range(400))
    assert chosen["d0"] < 200


def test_power_of_two_serves_with_one_worker() -> None:
    assert power_of_two(asked(3), [worker("d0")]).decode.worker_id == "d0"


def test_homes_are_what_can_take_a_request() -> None:
    workers = [worker("d0"), worker("d1", draining=True), worker("p0", "prefill")]
    assert [view.worker_id for view in homes("tiny", workers)] == ["d0"]
