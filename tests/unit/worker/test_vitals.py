"""When a worker should be restarted, and when it should be counted."""

from __future__ import annotations

from triptych.worker.vitals import Vitals


def test_a_worker_is_ready_while_a_router_has_it():
    vitals = Vitals(lambda: 0.0, 30.0)
    assert vitals.ready() == "attached to no router"
    vitals.attached("router-0", True)
    vitals.attached("router-1", True)
    vitals.attached("router-0", False)
    assert vitals.ready() == ""
    vitals.attached("router-1", False)
    assert vitals.ready()


def test_a_draining_worker_is_alive_and_not_ready():
    vitals = Vitals(lambda: 0.0, 30.0)
    vitals.attached("router-0", True)
    vitals.draining = True
    assert (vitals.live(), vitals.ready()) == ("", "draining")


def test_a_worker_that_lost_its_routers_is_not_restarted():
    assert Vitals(lambda: 0.0, 30.0).live() == ""


def test_a_step_that_routers_already_go_round_is_given_more_time_before_a_restart():
    step_s = 31.0
    vitals = Vitals(lambda: step_s, 30.0)
    assert vitals.live() == ""
    step_s = 121.0
    assert vitals.live() == "the engine is in one step for 121 s, the limit is 120"
