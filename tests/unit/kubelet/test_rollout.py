"""What workloads do next, pod by pod."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triptych.testing.kubelet.rollout import (
    PodView,
    Step,
    deployment_step,
    share_of,
    stateful_step,
)


def pod(name: str, *, current: bool = True, ready: bool = True, stopping: bool = False) -> PodView:
    ordinal = int(name) if name.isdigit() else 0
    return PodView(name, current, ready, stopping, ordinal)


def test_a_new_deployment_makes_all_its_pods_at_once() -> None:
    assert deployment_step(3, 1, 0, []) == Step(create=3)


def test_a_deployment_replaces_what_was_deleted_without_waiting_for_its_end() -> None:
    pods = [pod("a"), pod("b", stopping=True)]
    assert deployment_step(2, 1, 0, pods) == Step(create=1)


def test_a_surge_comes_first_and_an_old_pod_goes_when_the_new_one_is_ready() -> None:
    old = [pod("a", current=False), pod("b", current=False)]
    assert deployment_step(2, 1, 0, old) == Step(create=1)
    assert deployment_step(2, 1, 0, [*old, pod("c", ready=False)]) == Step()
    step = deployment_step(2, 1, 0, [*old, pod("c")])
    assert (step.create, step.delete) == (0, ("a",))


def test_without_a_surge_an_old_pod_goes_first() -> None:
    old = [pod("a", current=False), pod("b", current=False)]
    assert deployment_step(2, 0, 1, old) == Step(delete=("a",))
    assert deployment_step(2, 0, 1, old[1:]) == Step(create=1)


def test_old_pods_that_are_not_ready_go_at_once() -> None:
    pods = [pod("a", current=False, ready=False), pod("b", current=False)]
    assert deployment_step(2, 1, 0, pods).delete == ("a",)


def test_fewer_replicas_take_those_that_are_not_ready_first() -> None:
    pods = [pod("a"), pod("b", ready=False), pod("c")]
    assert deployment_step(2, 1, 0, pods) == Step(delete=("b",))


@pytest.mark.parametrize(("surge", "unavailable"), [(1, 0), (0, 1), (2, 1), (0, 0)])
def test_a_rollout_ends_and_never_has_fewer_ready_pods_than_promised(
    surge: int, unavailable: int
) -> None:
    replicas = 4
    pods = [pod(f"old-{number}", current=False) for number in range(replicas)]
    promised = replicas - max(unavailable, 0 if surge else 1)
    made = 0
    for _ in range(100):
        step = deployment_step(replicas, surge, unavailable, pods)
        if step == Step() and all(each.ready for each in pods):
            break
        pods = [each for each in pods if each.name not in step.delete]
        assert sum(each.ready for each in pods) >= promised
        pods = [replace(each, ready=True) for each in pods]
        pods += [pod(f"new-{made + extra}", ready=False) for extra in range(step.create)]
        made += step.create
        assert len(pods) <= replicas + surge
    assert made == replicas
    assert all(each.current for each in pods)
    assert len(pods) == replicas


def test_percentages_round_up_for_a_surge_and_down_for_what_may_be_missing() -> None:
    assert share_of("25%", 3, up=True) == 1
    assert share_of("25%", 3, up=False) == 0
    assert share_of(2, 3, up=True) == 2


def test_a_stateful_set_in_order_waits_for_each_pod() -> None:
    assert stateful_step(3, parallel=False, pods=[]) == Step(ordinals=(0,))
    assert stateful_step(3, parallel=False, pods=[pod("0", ready=False)]) == Step()
    assert stateful_step(3, parallel=False, pods=[pod("0")]) == Step(ordinals=(1,))


def test_a_parallel_one_makes_all_that_are_missing_but_not_those_that_still_stop() -> None:
    assert stateful_step(2, parallel=True, pods=[]) == Step(ordinals=(0, 1))
    stopping = [pod("0", stopping=True), pod("1")]
    assert stateful_step(2, parallel=True, pods=stopping) == Step()


def test_a_stateful_set_is_upgraded_from_the_last_to_the_first_one_at_a_time() -> None:
    pods = [pod(str(number), current=False) for number in range(3)]
    order = []
    while step := next(iter(stateful_step(3, parallel=True, pods=pods).delete), None):
        order.append(step)
        pods[int(step)] = pod(step, ready=False)
        assert stateful_step(3, parallel=True, pods=pods) == Step()
        pods[int(step)] = pod(step)
    assert order == ["2", "1", "0"]


def test_fewer_ordinals_are_cut_from_the_end() -> None:
    pods = [pod(str(number)) for number in range(4)]
    assert stateful_step(2, parallel=False, pods=pods) == Step(delete=("3",))
    assert stateful_step(2, parallel=True, pods=pods) == Step(delete=("3", "2"))
