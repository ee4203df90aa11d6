"""Thresholds of probes, and waits between starts."""

from __future__ import annotations

import pytest

from triptych.testing.kubelet.probes import Probe, Tally, back_off_s, port_number

CONTAINER = {"name": "worker", "ports": [{"name": "http", "containerPort": 8000}]}


def verdicts(looks: str, **thresholds: int) -> str:
    """By looks (+ or -): (p)ending, (g)ood, (b)ad after each."""
    tally = Tally(Probe.of({"httpGet": {}, **thresholds}))
    return "".join(tally.add(each == "+").value[0] for each in looks)


def test_bad_only_after_failures_in_a_row() -> None:
    assert verdicts("--+--+---", failureThreshold=3) == "ppgggggg" + "b"


def test_good_again_after_successes_in_a_row() -> None:
    assert verdicts("---++", failureThreshold=3, successThreshold=2) == "ppbbg"


def test_the_first_restart_is_at_once_and_later_ones_wait_longer_and_longer() -> None:
    assert [back_off_s(n) for n in range(5)] == [0, 0, 10, 20, 40]
    assert back_off_s(50) == 300


def test_a_port_that_the_container_does_not_have_is_named() -> None:
    assert port_number("http", CONTAINER) == 8000
    assert port_number(9, CONTAINER) == 9
    with pytest.raises(KeyError, match="worker has no port metrics"):
        port_number("metrics", CONTAINER)


def test_a_kind_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="knows"):
        Probe.of({"grpc": {"port": 8000}})
